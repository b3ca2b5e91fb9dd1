"""The cheapest allocation of a budget, of levels or of a real quantity, by dynamic programming over modules.

Letters: M = modules, B = budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FORBIDDEN = math.inf
"""The cost of a level that a module must not take."""
UNITS = 1 << 14
"""Most units that a budget is counted in; finer prices are rounded up, so a budget is never exceeded."""


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


def cheapest(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int) -> tuple[int, ...]:
    """The level of every module that costs at most a budget in all, at the least sum of errors.

    Args:
        errors: (M, levels); `FORBIDDEN` where a module must not be, but not for all levels that the budget allows.
        costs: (M, levels), at least 0; the last level of every module costs nothing.
        budget: at least 0. Where it has more than `UNITS` of the costs' common divisor, costs are rounded up to as many.

    Returns:
        M levels.
    """
    divisor = math.gcd(*(cost for row in costs for cost in row)) or 1
    unit = max(divisor, -(-budget // UNITS))
    size = budget // unit + 1
    best = np.zeros(size)  # best[b]: least error of the modules so far within b units
    taken: list[np.ndarray] = []
    for row_errors, row_costs in zip(errors, costs):
        options = np.full((len(row_errors), size), np.inf)
        for level, (error, cost) in enumerate(zip(row_errors, row_costs)):
            units = -(-cost // unit)
            if units < size:
                options[level, units:] = best[: size - units] + error
        taken.append(options.argmin(0))
        best = options.min(0)
    left, levels = size - 1, []
    for row_costs, choice in zip(reversed(costs), reversed(taken)):
        level = int(choice[left])
        left -= -(-row_costs[level] // unit)
        levels.append(level)
    return tuple(reversed(levels))
