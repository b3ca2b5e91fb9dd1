"""ZipLM (arXiv 2302.04089): the allocation of least layer-wise error within a budget, by dynamic programming.

The price of a level is its relative squared error, 0 dense and 1 gone, as the database's manifest has it. The budget is
counted in parameters of the whole model, in levels of each kind, or in any limits (`target.budget`). The random search
over weights of the prices that ZipLM puts on top (SPDY) is not here.
"""

from __future__ import annotations

from darwinlm.baselines.task import Task
from darwinlm.genome import Genome
from darwinlm.search.allocation import FORBIDDEN, allocate, cheapest
from darwinlm.search.start_within import priced
from darwinlm.target.budget import Budget, Step


def ziplm(task: Task) -> Genome:
    """The least sum of errors with at most the budget's parameters, or within the limits that the task names."""
    if task.limits is not None:
        return least_error(_errors(task), task.limits)
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


def least_error(errors: list[list[float]], budget: Budget) -> Genome:
    """The least sum of errors within limits in parameters, bytes, measured time or steps: of one limit the least of all.

    Several limits are weighed against each other, alone and together; the best genome that keeps all of them is taken.

    Args:
        errors: (modules, levels).
        budget: that can be kept.
    """
    gone = budget.tops()
    closed = [[FORBIDDEN] * low + row[low:] for low, row in zip(budget.lowest, errors)]

    def least(steps: list[Step]) -> Step:
        return min(steps, key=lambda step: (errors[step[0]][step[2]] - errors[step[0]][step[1]], step))

    found = [budget.repair(cheapest(closed, prices, most), least) for prices, most in priced(gone, budget)]
    if len(budget.limits) == 1:
        (limit,) = budget.limits
        found.append(cheapest(closed, limit.costs, limit.most - limit.base))
    return min(found, key=lambda genome: (sum(row[level] for row, level in zip(errors, genome)), genome))
