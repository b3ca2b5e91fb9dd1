"""Structured Optimal Brain Surgeon: remove whole input groups from one linear layer, refit what is left.

Source: ZipLM (arXiv 2302.04089), as used by DarwinLM (arXiv 2502.07780), equations 3 and 4.
Shapes: R = out_features, C = in_features, s = group size, G = C // s groups, B = block of removals, k = kept columns.

The layer is W (R, C), its inputs have the second moment H (C, C). Two matrices are enough to choose what leaves:
K = H^-1 and P = W^T W. Removing the group M costs tr((K_MM)^-1 P_MM), and then with A = (K_MM)^-1 K_M:

    W <- W - W_M A            K <- K - K_M^T A            P <- P - P_M^T A - A^T P_M + A^T P_MM A
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.database.columns import PANEL, choose_columns, lost_definiteness, mirror, submatrix, update_lower
from darwinlm.errors import CalibrationError


@dataclass(frozen=True)
class PrunedLevel:
    """One layer with some of its groups removed."""

    removed: list[int]
    """Groups in the order they left."""
    kept: Tensor
    """(k,) int64: columns that stay, ascending."""
    weight: Tensor
    """(R, k): the refitted columns."""
    error: float
    """tr(dW H dW^T): squared error of the output, with dW the difference to the dense layer."""


def prune_groups(
    weight: Tensor, hessian: Tensor, *, group_size: int, counts: Sequence[int], rounds: int | None = None
) -> Iterator[PrunedLevel]:
    """Yield the layer with `counts[0]`, `counts[1]`, ... groups removed and the rest refitted.

    Removal is greedy (equation 3), so the levels are nested and a single pass produces all of them. Each level is the
    exact least-squares refit of its kept columns, which repeated updates (equation 4) reach but for rounding.

    Args:
        weight: (R, C), left unchanged.
        hessian: (C, C), damped; its dtype (float32 or wider) is the dtype of the arithmetic.
        group_size: columns that leave together: 1 for an MLP channel, head_dim for a query head.
        counts: strictly increasing, each within [0, G].
        rounds: groups form this many equal runs of neighbours, and every run loses one group before any loses
            another (attention that must stay balanced over its KV heads). By default there is no such order.

    Raises:
        ValueError: the arguments are not as described.
        CalibrationError: `hessian` is not finite or not positive definite; says to raise `rel_damp` or calibrate on
            more tokens.
    """
    columns = weight.shape[1]
    groups, rest = divmod(columns, group_size)
    if rest or hessian.shape != (columns, columns):
        raise ValueError(
            f"weight {tuple(weight.shape)}, hessian {tuple(hessian.shape)}, group_size {group_size} do not fit"
        )
    if list(counts) != sorted(set(counts)) or not counts or not 0 <= counts[0] <= counts[-1] <= groups:
        raise ValueError(f"counts must increase strictly within [0, {groups}], not {list(counts)}")
    if rounds is not None and groups % rounds:
        raise ValueError(f"{groups} groups do not form {rounds} equal runs")

    weight = weight.to(hessian.dtype)
    inverse = torch.cholesky_inverse(_cholesky(hessian)).mT.contiguous()  # symmetric; LAPACK leaves it column-major
    moment = torch.zeros_like(inverse)
    update_lower(moment, weight, weight, 1)
    mirror(moment)
    needed = min(counts[-1], groups - 1)  # the last one standing needs no choice
    if group_size == 1 and rounds is None:
        order = choose_columns(inverse, moment, needed)
    else:
        order = choose_groups(inverse, moment, group_size, needed, rounds)
    order += sorted(set(range(groups)) - set(order))[: counts[-1] - needed]
    del inverse, moment
    yield from _refit(weight, hessian, order, group_size, counts)


def choose_groups(inverse: Tensor, moment: Tensor, group_size: int, count: int, rounds: int | None) -> list[int]:
    """The first `count` groups of `group_size` neighbouring columns that leave, by greedy equation 3.

    Args:
        inverse: (C, C), H^-1; overwritten.
        moment: (C, C), W^T W; overwritten.
        group_size: s.
        count: within [0, G].
        rounds: see `prune_groups`.
    """
    groups = inverse.shape[0] // group_size
    alive = torch.ones(groups, dtype=torch.bool, device=inverse.device)
    waiting = alive.clone()  # not yet served in this round
    order: list[int] = []
    for _ in range(count):
        factor, info = torch.linalg.cholesky_ex(_diagonal_blocks(inverse, group_size))
        if info[alive].any():
            raise lost_definiteness()
        factor = torch.where(
            alive[:, None, None], factor, torch.eye(group_size, dtype=factor.dtype, device=factor.device)
        )
        solved = torch.cholesky_solve(_diagonal_blocks(moment, group_size), factor)
        score = solved.diagonal(dim1=-2, dim2=-1).sum(-1)  # eq. 3 for every group
        if not torch.isfinite(score[alive]).all():
            raise lost_definiteness()
        chosen = int(score.masked_fill(~(alive & waiting), torch.inf).argmin())
        members = slice(chosen * group_size, (chosen + 1) * group_size)
        k_rows, p_rows = inverse[members].clone(), moment[members].clone()
        a = torch.cholesky_solve(k_rows, factor[chosen])
        inverse.addmm_(k_rows.T, a, alpha=-1)
        half = p_rows - 0.5 * p_rows[:, members] @ a
        moment.addmm_(half.T, a, alpha=-1).addmm_(a.T, half, alpha=-1)
        alive[chosen] = False
        order.append(chosen)
        if rounds is not None:
            run = groups // rounds
            waiting[chosen // run * run : (chosen // run + 1) * run] = False
            waiting = waiting if (waiting & alive).any() else alive.clone()
    return order


def _refit(
    weight: Tensor, hessian: Tensor, order: list[int], group_size: int, counts: Sequence[int]
) -> Iterator[PrunedLevel]:
    """Exact refits of all levels from one factorization.

    Columns are put in the order [kept longest ... removed first]; then the leading k x k block of the Cholesky factor
    L of H is the factor for "k kept", Y = W H L^-T = W L serves all levels, and each is one substitution, W_k L_k = Y_k.
    The columns of Y that a level leaves out are its error: tr(dW H dW^T) = |Y[:, k:]|^2.
    """
    groups = weight.shape[1] // group_size
    kept_longest = sorted(set(range(groups)) - set(order)) + order[::-1]
    offsets = torch.arange(group_size)
    columns = (torch.tensor(kept_longest)[:, None] * group_size + offsets).flatten()
    place = columns.to(weight.device)
    factor = _cholesky(submatrix(hessian, place))
    y = _times_lower(weight.index_select(1, place), factor)
    column_errors = y.square().sum(0, dtype=torch.float64)
    for count in counts:
        k = weight.shape[1] - count * group_size
        refitted = torch.linalg.solve_triangular(factor[:k, :k], y[:, :k], upper=False, left=False)
        if not torch.isfinite(refitted.sum()):  # a NaN or Inf anywhere shows in the sum
            raise lost_definiteness()
        kept, ascending = columns[:k].sort()
        yield PrunedLevel(
            removed=order[:count],
            kept=kept,
            weight=refitted.index_select(1, ascending.to(refitted.device)),
            error=column_errors[k:].sum().item(),
        )


def _times_lower(matrix: Tensor, lower: Tensor) -> Tensor:
    """matrix (R, C) times a lower triangular (C, C), panel by panel: the zeros above the diagonal are not multiplied."""
    product = torch.empty_like(matrix)
    for start in range(0, lower.shape[0], PANEL):
        panel = slice(start, start + PANEL)
        torch.mm(matrix[:, start:], lower[start:, panel], out=product[:, panel])
    return product


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """(C, C) -> (G, s, s)."""
    groups = matrix.shape[0] // size
    return matrix.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _cholesky(hessian: Tensor) -> Tensor:
    if not torch.isfinite(hessian).all():
        raise CalibrationError(
            "The Hessian holds NaN or Inf: the model overflows on the calibration data. Run it with --dtype float32, "
            "and check that the checkpoint itself gives finite logits."
        )
    factor, info = torch.linalg.cholesky_ex(hessian)
    if info.item():
        raise CalibrationError(
            f"The Hessian is not positive definite (leading minor {info.item()} of {hessian.shape[0]}). "
            "Raise database.rel_damp, or calibrate on more tokens (blocks.hessian)."
        )
    return factor
