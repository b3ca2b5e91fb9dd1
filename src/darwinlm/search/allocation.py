"""The cheapest allocation of a budget of levels, by dynamic programming over modules.

Letters: M = modules, B = budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FORBIDDEN = math.inf
"""The cost of a level that a module must not take."""


def allocate(costs: Sequence[Sequence[float]], budget: int, changes: int | None = None) -> tuple[int, ...] | None:
    """The level of every module that sums to a budget at the least total cost.

    Costs may be negative. Of equally cheap allocations the one with lower levels in the first modules is taken.

    Args:
        costs: (M, levels): the cost of each level of each module; `FORBIDDEN` where it must not be.
        budget: B, the sum of levels.
        changes: how many modules may have a cost other than 0, that is, differ from where they are; by default all.

    Returns:
        M levels; None where no allocation is allowed.
    """
    limit = len(costs) if changes is None else changes
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    for row in costs:
        further: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (used, changed), (cost, levels) in best.items():
            for level, step in enumerate(row):
                state = (used + level, changed + (step != 0 and changes is not None))
                if step == FORBIDDEN or state[0] > budget or state[1] > limit:
                    continue
                option = (cost + step, (*levels, level))
                if state not in further or option < further[state]:
                    further[state] = option
        best = further
    reached = [option for (used, _), option in best.items() if used == budget]
    return min(reached)[1] if reached else None
