"""ZipLM (arXiv 2302.04089): the allocation of least layer-wise error within a budget.

The price of a level is its relative squared error, 0 dense and 1 gone, as the database's manifest has it. The budget is
counted in parameters of the whole model, or in levels of each kind. The random search over weights of the prices that
ZipLM puts on top (SPDY) is not here.
"""

from __future__ import annotations

from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome
from darwinlm.search.propose import allocate
from darwinlm.target.budget import Budget


def ziplm(task: Task) -> Genome:
    """The least sum of errors with at most the budget's parameters."""
    return least_error(task, task.parameter_limit())


def ziplm_kinds(task: Task) -> Genome:
    """The least sum of errors with the uniform genome's sum of levels in each kind."""
    return least_error(task, task.level_limits())


def least_error(task: Task, budget: Budget) -> Genome:
    """The least sum of errors within any limits."""
    modules = task.assembler.database.modules
    found = allocate([modules[ladder.name].relative_errors for ladder in task.space.ladders], budget)
    if found is None:
        raise ValueError("a budget that no model without modules can meet")
    return found
