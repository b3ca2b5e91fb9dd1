"""The least-squares problem of one output matrix of a pruned model: what it is fed, and what the residual stream lacks.

H = hidden size, C = columns of the matrix. X (C, tokens) are its inputs in the pruned model, E (H, tokens) is what the
residual stream lacks behind it, against the dense model:

    W' = argmin |E - (W' - W) X|^2 + a |W' - W|^2 = W + E X^T (X X^T + a I)^-1        a = damping * mean(diag X X^T)

A mixture of P experts has a problem for each, with what is lacking shared out among those that a token takes (`shared`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from darwinlm.database.obs import prune_groups
from darwinlm.errors import CalibrationError
from darwinlm.runtime import ranks

DAMPINGS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Tried for every matrix; the one with the least error on the checked sequences is taken."""
OUTLYING = 9.0
"""Times the median of its sequence that |E|^2 of a token comes to, at most, once it is clipped."""


class Moments:
    """What the least-squares problem of one matrix depends on: sums over tokens, in float64.

    Args:
        weight: (H, C).
    """

    def __init__(self, weight: Tensor) -> None:
        rows, columns = weight.shape
        place: dict[str, Any] = {"dtype": torch.float64, "device": weight.device}
        self.inputs = torch.zeros(columns, columns, **place)
        """X X^T (C, C)."""
        self.cross = torch.zeros(rows, columns, **place)
        """E X^T (H, C)."""
        self.lack = torch.zeros((), **place)
        """|E|^2."""

    def add(self, inputs: Tensor, lack: Tensor) -> None:
        """Count the tokens of some sequences in: X (..., C) and E (..., H)."""
        x, e = inputs.flatten(0, -2).float(), lack.flatten(0, -2).float()
        for total, part in ((self.inputs, x.T @ x), (self.cross, e.T @ x), (self.lack, e.square().sum())):
            total += part.to(total.device)

    def all_reduce(self) -> None:
        """Add up the sums of all ranks."""
        for total in (self.inputs, self.cross, self.lack):
            ranks.all_reduce(total)

    def behind(self, change: Tensor, columns: Tensor) -> Moments:
        """Of the matrix as changed by `change` (H, C), for `columns` (k,) alone of its inputs."""
        found = Moments(self.cross[:, columns])
        found.inputs += self.inputs[columns][:, columns]
        found.cross += (self.cross - change @ self.inputs)[:, columns]
        found.lack += self.error(change)
        return found

    def error(self, change: Tensor) -> float:
        """|E - change X|^2 for a change (H, C) of the matrix."""
        return (self.lack - (change * (2 * self.cross - change @ self.inputs)).sum()).item()


def clipped(lack: Tensor) -> Tensor:
    """What is lacking (S, T, H), E / sqrt(1 + |E|^2 / (OUTLYING * median)): at ordinary tokens as it is.

    Models with attention sinks lack at a few tokens a thousand times what they lack elsewhere; no refit can give it back, and
    squares of it would be all that counts. Such tokens count as others do, but ask for little: their huge activations stay.
    """
    size = lack.float().square().sum(-1, keepdim=True)
    usual = size.median(-2, keepdim=True).values.clamp_min(torch.finfo(torch.float32).tiny)
    return lack.float() * (1 + size / (OUTLYING * usual)).rsqrt()


def shared(inputs: Tensor, lack: Tensor, parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and lack of each of P parts of a matrix's columns, of the tokens that reach it.

    With D the change of the matrix, and shares s_p that add up to 1 at every token, here by |X_p|,

        |E - sum_p D_p X_p|^2 <= sum_p |sqrt(s_p) E - D_p X_p / sqrt(s_p)|^2,

    and both are the same where D = 0: what makes the right side less, each part for itself, makes the left side less.

    Args:
        inputs: X (..., C).
        lack: E (..., H).
        parts: P.
    """
    if parts == 1:
        yield inputs, lack
        return
    x, e = inputs.float().unflatten(-1, (parts, -1)).flatten(0, -3), lack.float().flatten(0, -2)
    size = x.norm(dim=2)
    shares = size / size.sum(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    for part in range(parts):
        reached = (shares[:, part] > 0).nonzero().flatten()
        root = shares[reached, part, None].sqrt()
        yield x[reached, part] / root, e[reached] * root


def refit_matrix(weight: Tensor, moments: Moments, damping: float) -> Tensor:
    """W + E X^T (X X^T + damping * mean(diag X X^T) I)^-1 in float64.

    Args:
        weight: W (H, C). Columns of zeros, as padding has them, stay zero.
        moments: of the tokens that are fitted to.
        damping: positive: how dear it is to leave W.

    Raises:
        CalibrationError: the activations are not finite, or the damping is too small for them.
    """
    weight = weight.to(moments.cross)
    live = (weight != 0).any(0).nonzero().flatten()
    damped = moments.inputs[live][:, live]
    damped.diagonal().add_(damping * damped.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(damped)
    if info.item() or not torch.isfinite(factor).all():
        raise CalibrationError(
            "The calibration inputs hold NaN or Inf, are all zero or fewer than the matrix has columns. Run with --dtype "
            "float32, raise refit.tokens, or set it to 0 to leave the refit out."
        )
    change = torch.zeros_like(moments.cross)
    change[:, live] = torch.cholesky_solve(moments.cross[:, live].T, factor).T
    return weight + change


def best_matrix(
    weight: Tensor,
    fit: Moments,
    check: Moments,
    stored: Callable[[Tensor], Tensor],
    as_it_was: Tensor | None = None,
    dampings: Sequence[float] = DAMPINGS,
) -> tuple[Tensor, float | None]:
    """The refit with the least error on tokens that it was not fitted to, rounded as stored; at worst the matrix as it was.

    Args:
        weight: (H, C).
        fit: of the tokens that are fitted to.
        check: of others, which choose.
        stored: what is left of a matrix where it is stored.
        as_it_was: what was left of `weight`, where that is not its own.
        dampings: to choose from.

    Returns:
        The matrix and its damping; None where it stays.
    """
    old = weight.to(check.cross)
    change = torch.zeros_like(old) if as_it_was is None else as_it_was.to(old) - old
    best = (check.error(change), None, stored(weight) if as_it_was is None else as_it_was)
    for damping in dampings if weight.any() and fit.inputs.any() else ():
        new = stored(refit_matrix(weight, fit, damping))
        best = min(best, (check.error(new.double() - old), damping, new), key=lambda one: one[0])
    return best[2], best[1]


def choose_again(
    weight: Tensor, wide: Moments, keep: int, damping: float, stored: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The columns that a module of the pruned model should keep, by what it is fed there and what is lacking there.

    The second-order step on the dense matrix as refitted: like the database's, but of the corrected problem.

    Args:
        weight: (H, C), dense.
        wide: sums over tokens, of the dense matrix in the pruned model.
        keep: how many columns stay.
        damping: as in `refit_matrix`.
        stored: what is left of a matrix where it is stored.

    Returns:
        The columns (k,) and their matrix (H, k).
    """
    hessian = wide.inputs.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    whole = refit_matrix(weight, wide, damping)
    (level,) = prune_groups(whole, hessian, group_size=1, counts=[weight.shape[1] - keep])
    return level.kept, stored(level.weight)
