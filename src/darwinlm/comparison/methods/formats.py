"""Formats of storage as methods: one for all, after the structure was searched, alone, and together with the structure.

All keep the bytes of one file, and candidates compute with what an engine reads back. Which format each module gets, at
the dense widths, is the question of EvoPress (arXiv 2410.14649) for quantization; here all are searched alike.
"""

from __future__ import annotations

import dataclasses

from darwinlm.comparison.methods.darwin import searched
from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome, Space
from darwinlm.runtime.seeds import python_random
from darwinlm.search.fitness import Pools
from darwinlm.search.start import ModelMeasures
from darwinlm.target.budget import Budget, uniform


def one_format(task: Task) -> Genome:
    """The dense model in the largest format that fits, and here and there in the next larger one; where none fits, the same
    share of every module gone in the smallest."""
    return uniform(task.memory_limit(), python_random(task.seed, "start"))


def then_quantized(task: Task) -> Genome:
    """The structure searched in the checkpoint's own numbers, for each format to fill the bytes in it; of these the one of
    least KL on the search's tokens."""
    found = list(dict.fromkeys(_structure(task, format_) for format_ in task.space.formats[1:]))
    measures = ModelMeasures(task.assembler, Pools(task.train, task.teacher, task.stream), task.search, task.seed)
    kls = measures.kls(found)
    return found[kls.index(min(kls))]


def _structure(task: Task, format_: str) -> Genome:
    limit, ladders = task.memory_limit().limits[0], task.space.ladders
    rungs = [
        [*(ladder.rung(level, format_) for level in range(ladder.level(ladder.top))), ladder.top] for ladder in ladders
    ]
    if limit.spent(whole := tuple(each[0] for each in rungs)) <= limit.most:
        return whole
    costs = tuple(tuple(row[rung] for rung in each) for row, each in zip(limit.costs, rungs))
    plain = dataclasses.replace(task, assembler=task.plain, folder=task.folder / format_)
    budget = Budget((dataclasses.replace(limit, costs=costs),), plain.space.present)
    levels = searched(plain, task.search, budget, f"start {format_} {limit.most}")
    return tuple(each[level] for each, level in zip(rungs, levels))


def formats_alone(task: Task) -> Genome:
    """The format of every module searched at the dense widths; the smallest must fit."""
    budget = task.memory_limit()
    limit, each = budget.limits[0], len(task.space.formats)
    beyond = limit.most + 1  # what costs more than there is, is never taken
    costs = tuple(tuple(cost if rung < each else beyond for rung, cost in enumerate(row)) for row in limit.costs)
    budget = dataclasses.replace(budget, limits=(dataclasses.replace(limit, costs=costs),))
    if not budget.affordable(whole := smallest_whole(task.space)):  # the only one
        return whole
    return searched(task, task.search, budget, f"start formats {limit.most}")


def smallest_whole(space: Space) -> Genome:
    """The dense model in the smallest format."""
    return tuple(ladder.rung(0, ladder.formats[-1]) for ladder in space.ladders)


def structure_and_formats(task: Task) -> Genome:
    """What `darwinlm search` finds with the same settings: width and format of every module at once."""
    budget = task.memory_limit()
    return searched(task, task.search, budget, f"start structure and formats {budget.limits[0].most}")
