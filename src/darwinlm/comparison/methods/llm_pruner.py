"""LLM-Pruner (arXiv 2305.11627): coupled groups of weights leave by first-order Taylor importance; nothing is refitted.

A unit of a module is coupled through its output matrix: its columns there, and the rows of the other matrices that compute
them (keys and values only where they leave with it). Its importance is the sum over all these weights of
|weight x gradient of the loss|: element-wise, first order, groups by sum, which its results are given for. As in its
released settings all layers lose the same share, but for some at both ends that are left alone: 4 at the beginning and 2
at the end of 32, here an eighth of the layers and half as many. Where the
attentions, or the MLPs, of what lies between cannot give the budget without one going whole, fewer of that kind are spared, in
the same proportion.

What differs: the text is that of the comparison (there 10 sequences of 64 tokens of a book corpus), and groups leave all at
once, in the levels of the ladders. The training with LoRA that follows there is the comparison's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from darwinlm.comparison.methods.orders import removal_orders, write_orders
from darwinlm.comparison.methods.task import Task
from darwinlm.comparison.methods.taylor import Sums, saliences
from darwinlm.database.levels import Ladder
from darwinlm.genome import Genome, Space
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import layer_prefix
from darwinlm.runtime.seeds import python_random
from darwinlm.target.budget import Budget, level_limits, uniform


def llm_pruner(task: Task) -> Genome:
    """The same share of all modules but those of spared layers; the orders lie in the task's folder."""
    ladders, sums = task.space.ladders, saliences(task)
    shape = task.assembler.source.shape
    write_orders(task.folder, removal_orders(ladders, [importances(l, shape, sums) for l in ladders]))
    return uniform_between(task)


def importances(ladder: Ladder, shape: ModelShape, sums: Mapping[str, Sums]) -> Tensor:
    """(G,): of every unit of a module, the sum over all weights that leave with it; rows that several units share do not.

    Args:
        ladder: of the module.
        shape: of the model.
        sums: of all its matrices, as `saliences` gives them.
    """
    units, site = ladder.columns // ladder.group_size, shape.family.site(ladder.kind)
    counts, prefix = shape.layers[ladder.layer].counts, layer_prefix(ladder.layer)
    found = sums[f"{prefix}{site.output}.weight"].columns.unflatten(0, (units, -1)).sum(1)
    for name in dict.fromkeys(f"{cut.matrix}.weight" for cut in site.cuts):
        if prefix + name in sums:
            parts = site.split(name, sums[prefix + name].rows, counts)
            whole = (rows for part, rows in parts.items() if counts[part] % units == 0)
            found = sum((rows.flatten().unflatten(0, (units, -1)).sum(1) for rows in whole), found)
    return found


def uniform_between(task: Task) -> Genome:
    """The budget's sum of levels in each kind, evenly from the modules of all layers but as many at both ends as can be."""
    layers, totals = 1 + max(ladder.layer for ladder in task.space.ladders), task.space.targets(task.share)
    found: dict[str, int] = {}
    for kind in task.space.kinds:
        for first in range(round(layers / 8), -1, -1):
            between = range(first, layers - math.ceil(first / 2))
            inner = Space(tuple(l for l in task.space.ladders if l.kind == kind and l.layer in between))
            if totals[kind] <= sum(ladder.top - 1 for ladder in inner.ladders) or not first:
                break
        budget = Budget(level_limits(inner, {kind: totals[kind]}), inner.present)
        found |= inner.named(uniform(budget, python_random(task.seed, "start")))
    return tuple(found.get(ladder.name, 0) for ladder in task.space.ladders)
