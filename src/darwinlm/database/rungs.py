"""The ladder of a layer of experts: at each level so many experts stay, each so wide.

Experts of a layer are equally wide, since they are computed together, and never fewer than a token passes through.

Letters: E = experts, I = columns of an expert.
"""

from __future__ import annotations

from typing import Literal

Leaves = Literal["both", "experts", "columns"]


def expert_rungs(
    experts: int, width: int, chosen: int, multiple: int, steps: int, leaves: Leaves
) -> tuple[tuple[int, int], ...]:
    """(experts, width) at each level, both never rising: level i of N keeps about 1 - i/N of all E I columns.

    Args:
        experts: E, before any pruning.
        width: I, a multiple of `multiple`.
        chosen: experts that a token passes through: where fewer would stay, their widths fall instead.
        multiple: widths are multiples of it.
        steps: N; levels that equal the one before are left out.
        leaves: whole experts, columns of each, or both in the same proportion.
    """
    rungs = [(experts, width)]
    for step in range(1, steps):
        share = 1 - step / steps
        part = {"experts": share, "columns": 1.0, "both": share**0.5}[leaves]
        count = min(rungs[-1][0], max(chosen, round(experts * part)))
        wide = multiple * max(1, round(experts * width * share / count / multiple))
        if leaves == "experts" and count > chosen:
            wide = width
        if (rung := (count, min(rungs[-1][1], wide))) != rungs[-1]:
            rungs.append(rung)
    return (*rungs, (0, 0))
