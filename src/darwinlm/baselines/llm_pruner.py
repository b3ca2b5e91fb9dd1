"""LLM-Pruner (arXiv 2305.11627): coupled groups of weights leave by first-order Taylor importance; nothing is refitted.

A unit of a module is coupled through its output matrix: its columns there, and the rows of the other matrices that compute
them (keys and values only where they leave with it). Its importance is the sum over all these weights of
|weight x gradient of the loss|: element-wise, first order, groups by sum, which its results are given for. As in its
released settings all layers lose the same share, but for some at both ends that are left alone: 4 at the beginning and 2
at the end of 32, here an eighth of the layers and half as many. Where what lies between cannot give the budget without
losing a module whole, fewer are spared, in the same proportion.

What differs: the text is that of the comparison (there 10 sequences of 64 tokens of a book corpus), and groups leave all at
once, in the levels of the ladders. The training with LoRA that follows there is the comparison's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from darwinlm.baselines.orders import removal_orders, write_orders
from darwinlm.baselines.task import Task
from darwinlm.baselines.taylor import Sums, saliences
from darwinlm.database.levels import Ladder
from darwinlm.genome import Genome, Space
from darwinlm.runtime.seeds import python_random
from darwinlm.target.budget import Budget, level_limits, uniform


def llm_pruner(task: Task) -> Genome:
    """The same share of all modules but those of spared layers; the orders lie in the task's folder."""
    ladders, sums = task.space.ladders, saliences(task)
    head_dim = task.assembler.source.shape.head_dim
    write_orders(task.folder, removal_orders(ladders, [importances(l, sums, head_dim) for l in ladders]))
    return uniform_between(task)


def importances(ladder: Ladder, sums: Mapping[str, Sums], head_dim: int) -> Tensor:
    """(G,): of every unit of a module, the sum over all weights that leave with it.

    Args:
        ladder: of the module.
        sums: of all its matrices, as `saliences` gives them.
        head_dim: of attention; a matrix whose rows for a unit are fewer holds rows that several units share.
    """
    units = ladder.columns // ladder.group_size
    found = sums[ladder.output].columns.unflatten(0, (units, -1)).sum(1)
    for name, (rows, _) in sums.items():
        if not name.startswith(f"{ladder.name}.") or name == ladder.output:
            continue
        if len(rows) == ladder.columns or len(rows) == units * head_dim:
            found = found + rows.unflatten(0, (units, -1)).sum(1)
    return found


def uniform_between(task: Task) -> Genome:
    """The budget's sum of levels in each kind, evenly from the modules of all layers but as many at both ends as can be."""
    layers = 1 + max(ladder.layer for ladder in task.space.ladders)
    for first in range(round(layers / 8), 0, -1):
        between = range(first, layers - math.ceil(first / 2))
        genome = _uniform_in(task, between)
        if genome is not None:
            return genome
    return task.uniform


def _uniform_in(task: Task, layers: range) -> Genome | None:
    """The uniform genome of some layers at the whole budget; None where one of their modules would have to go."""
    space, totals = task.space, task.space.targets(task.share)
    inner = Space(tuple(ladder for ladder in space.ladders if ladder.layer in layers))
    if any(totals[kind] > sum(inner.ladders[i].top for i in inner.members(kind)) for kind in inner.kinds):
        return None
    levels = uniform(Budget(level_limits(inner, totals), inner.present), python_random(task.seed, "start"))
    if any(level == ladder.top for level, ladder in zip(levels, inner.ladders)):
        return None
    found = inner.named(levels)
    return tuple(found.get(ladder.name, 0) for ladder in space.ladders)
