"""ZipLM (arXiv 2302.04089): the allocation of least layer-wise error within a budget, by dynamic programming.

The price of a level is its relative squared error, 0 dense and 1 gone, as the database's manifest has it. The budget is
counted in parameters of the whole model, in levels of each kind, or in any limits (`target.budget`). The random search
over weights of the prices that ZipLM puts on top (SPDY) is not here.
"""

from __future__ import annotations

from darwinlm.baselines.task import Task
from darwinlm.genome import Genome
from darwinlm.search.allocation import allocate, cheapest
from darwinlm.search.layerwise import least_error


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
