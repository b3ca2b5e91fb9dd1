"""ZipLM (arXiv 2302.04089): the allocation of least layer-wise error within a budget, by dynamic programming.

The price of a level is its relative squared error, 0 dense and 1 gone, as the database's manifest has it. The budget is
counted in parameters of the whole model, or in levels of each kind. The random search over weights of the prices that ZipLM
puts on top (SPDY) is not here.

Letters: M = modules, B = units of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from darwinlm.baselines.task import Task
from darwinlm.genome import Genome
from darwinlm.search.allocation import allocate

UNITS = 1 << 14
"""Most units that a budget is counted in; finer prices are rounded up, so a budget is never exceeded."""


def ziplm(task: Task) -> Genome:
    """The least sum of errors with at most the budget's parameters."""
    dense = (0,) * len(task.space.ladders)
    gone = tuple(ladder.top for ladder in task.space.ladders)
    costs = [
        [task.parameters((*gone[:i], level, *gone[i + 1 :])) - task.parameters(gone) for level in range(ladder.top + 1)]
        for i, ladder in enumerate(task.space.ladders)
    ]
    if task.budget >= task.parameters(dense):
        return dense
    return cheapest(_errors(task), costs, task.budget - task.parameters(gone))


def ziplm_kinds(task: Task) -> Genome:
    """The least sum of errors with the uniform genome's sum of levels in each kind."""
    errors, levels = _errors(task), [0] * len(task.space.ladders)
    for kind, total in task.space.targets(task.share).items():
        members = task.space.members(kind)
        found = allocate([errors[i] for i in members], total)
        if found is None:
            raise ValueError(f"no allocation of {total} levels to {len(members)} modules")
        for module, level in zip(members, found):
            levels[module] = level
    return tuple(levels)


def _errors(task: Task) -> list[list[float]]:
    return [task.assembler.database.modules[ladder.name].relative_errors for ladder in task.space.ladders]


def cheapest(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int) -> tuple[int, ...]:
    """The level of every module that costs at most a budget in all, at the least sum of errors.

    Args:
        errors: (M, levels).
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
