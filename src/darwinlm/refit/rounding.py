"""Matrices of a pruned model rounded anew to their formats, in second order, by what the pruned model itself feeds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from darwinlm.database.fronts import round_fronts, watched_fronts
from darwinlm.formats.rounding import DAMPING, inverse_factor, rounded_in_order
from darwinlm.models.sites import Kind
from darwinlm.models.stock import Block
from darwinlm.refit.least_squares import Moments, best_matrix
from darwinlm.runtime import ranks

InFormat = Callable[[int, Kind], tuple[str, dict[str, Tensor]]]
"""Layer and kind of a module -> its format, and its matrices before they were stored in that, by their names within the layer."""


def fronts_anew(
    block: Block, kind: Kind, before: dict[str, Tensor], format_: str, hidden: Iterable[Tensor], device: torch.device
) -> dict[str, Tensor]:
    """The matrices in front of a module's output matrix, as the first rank rounds them.

    Args:
        block: of the pruned model.
        kind: of the module.
        before: the matrices as they were.
        format_: that they are rounded to.
        hidden: inputs of the block, of this rank's sequences that are fitted to.
        device: where the block computes.
    """
    with watched_fronts(block, kind, 1) as moments:
        for part in (one for each in hidden for one in each.split(1 if kind == "attention" else len(each))):
            block(part.to(device))
    ranks.all_reduce(moments)
    if not ranks.is_first():
        return ranks.broadcast({})
    damped = torch.stack([_damped(each) for each in moments])
    found = round_fronts(block.family.site(kind), before, block.widths.counts, damped, [format_])[format_]
    return ranks.broadcast({name: matrix.cpu() for name, matrix in found.items()})


def refit_anew(
    weight: Tensor, fit: Moments, check: Moments, format_: str, before: Tensor
) -> tuple[Tensor, float | None]:
    """The refit of an output matrix as it was `before` it was rounded to `weight`, rounded to the same format; what it stands
    for is as in `best_matrix`."""
    before = before.to(fit.cross)
    if not (before != 0).any(0).all():  # padding stays zero
        return weight, None
    every, change = torch.arange(before.shape[1], device=before.device), before - weight.to(before)
    upper = inverse_factor(_damped(fit.inputs))
    fit, check = (one.behind(change, every) for one in (fit, check))
    return best_matrix(before, fit, check, lambda matrix: rounded_in_order(matrix, upper, format_), weight)


def _damped(moments: Tensor) -> Tensor:
    found = moments.clone()
    found.diagonal().add_(DAMPING * found.diagonal().mean())
    return found
