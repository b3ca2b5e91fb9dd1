"""The levels of a mixture of experts, from those of its experts.

Letters: E = experts, I = columns of an expert as it is now, R = out_features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from darwinlm.database.obs import PrunedLevel


def expert_levels(
    experts: Sequence[Sequence[PrunedLevel]], widths: Sequence[int], rungs: Sequence[tuple[int, int]]
) -> list[PrunedLevel]:
    """The mixture at each rung, as of one matrix whose columns are those of all experts, expert by expert.

    Experts leave in the order of what their outputs carry: tr(W H W^T), with H of the tokens that take them, weighted by the
    router.

    Args:
        experts: of each the levels at `widths`, the last one gone.
        widths: falling, the present one first, 0 last.
        rungs: (experts, width), the present ones first, (0, 0) last.
    """
    carried = torch.tensor([levels[-1].error for levels in experts])
    order = carried.argsort(descending=True, stable=True).tolist()
    columns, removed, found = widths[0], [], []
    there = torch.arange(len(experts) * columns)
    for count, width in rungs:
        level, stay = widths.index(width), sorted(order[:count])
        chosen = [(expert, experts[expert][level]) for expert in stay]
        kept = torch.cat([there[:0], *(own.kept.cpu() + expert * columns for expert, own in chosen)])
        removed = [*removed, *there[~torch.isin(there, kept)].tolist()]
        there = kept
        weight = torch.cat([experts[0][-1].weight, *(own.weight for _, own in chosen)], 1)
        lost = sum(own.error for _, own in chosen) + sum(experts[e][-1].error for e in order[count:])
        found.append(PrunedLevel(removed=removed, kept=kept, weight=weight, error=lost))
    return found
