"""How much a Hessian is damped, by the error on tokens that it has not seen.

Letters: R = out_features, C = in_features, k = kept columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from darwinlm.database.columns import submatrix

DAMPINGS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""What is tried, relative to the mean of the diagonal."""
MORE = (1.0, 0.3, 0.1)
"""Tried, too, where few tokens may be what a Hessian is made of: those of an expert."""
USUAL = 1e-2
"""Where nothing was held back to choose by: the paper's."""


def held_out_errors(
    weight: Tensor,
    fit: Tensor,
    check: Tensor,
    group_size: int,
    removed: int,
    dampings: Sequence[float] = DAMPINGS,
) -> dict[str, float]:
    """The error of a refit on tokens that it was not made on, for each damping that can be factored.

    The columns that leave are the same for all dampings: the groups of least |W_j|^2 H_jj.

    Args:
        weight: (R, C).
        fit: (C, C), the undamped second moment that the refit is made on.
        check: (C, C), that of the tokens held back.
        group_size: columns that leave together.
        removed: groups that leave, within (0, G).
        dampings: to try.

    Returns:
        tr(dW H dW^T) / tr(W H W^T) with H = `check`, dW the difference to the dense layer, by damping as
        text; empty where that is no number for any.
    """
    power = (weight.square().sum(0) * fit.diagonal()).view(-1, group_size).sum(1)
    gone = torch.zeros_like(power, dtype=torch.bool)
    gone[power.argsort(stable=True)[:removed]] = True
    gone = gone.repeat_interleave(group_size)
    kept, left = (~gone).nonzero().flatten(), gone.nonzero().flatten()
    mean, block = fit.diagonal().mean(), submatrix(fit, kept)
    target = weight[:, left] @ fit.index_select(0, left).index_select(1, kept)
    dense = _squared(weight, check)
    diagonal, errors = block.diagonal().clone(), {}
    for damping in dampings:
        block.diagonal().copy_(diagonal + damping * mean)
        if (factor := _factor(block)) is None:
            continue
        difference = -weight
        difference[:, kept] = torch.cholesky_solve(target.T.to(factor.dtype), factor).T.to(weight.dtype)
        error = _squared(difference, check) / dense if dense else torch.nan
        if error < float("inf"):
            errors[f"{damping:g}"] = error
    return errors


def best(errors: dict[str, float], usual: float = USUAL) -> float:
    """The damping of the least error, of equal ones the largest; the usual one where there are none."""
    return min(sorted(map(float, errors), reverse=True), key=lambda damping: errors[f"{damping:g}"], default=usual)


def attempts(rel_damp: float) -> Iterator[tuple[float, torch.dtype]]:
    """Dampings and precisions in which a Hessian is tried until one can be factored."""
    yield rel_damp, torch.float32
    while True:
        yield rel_damp, torch.float64
        rel_damp *= 10
        if rel_damp >= 2:
            return


def _factor(matrix: Tensor) -> Tensor | None:
    for dtype in (matrix.dtype, torch.float64):
        factor, info = torch.linalg.cholesky_ex(matrix.to(dtype))
        if not info.item():
            return factor
    return None


def _squared(difference: Tensor, hessian: Tensor) -> float:
    return (difference @ hessian).mul_(difference).sum(dtype=torch.float64).item()
