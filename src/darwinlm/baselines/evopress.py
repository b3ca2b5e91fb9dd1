"""EvoPress (arXiv 2410.14649) for depth: evolution over which attention and MLP modules are gone, without training.

The evolution is the search's own in a space where a module is dense or gone: a level switch there puts one module back
and drops another of its kind.
"""

from __future__ import annotations

import dataclasses

from darwinlm.baselines.task import Task
from darwinlm.baselines.uniform import uniform
from darwinlm.config import Stage
from darwinlm.genome import Genome, Space
from darwinlm.search.evolution import evolve
from darwinlm.search.selection import TrainedFitness


def evopress(task: Task) -> Genome:
    """Drop as few modules, as many of each kind in proportion, as bring the parameters within the budget."""
    layers = max(len(task.space.members(kind)) for kind in task.space.kinds)
    for dropped in range(1, layers + 1):
        start = uniform(dense_or_gone(task.space), dropped / layers, task.seed)
        if task.parameters(in_levels(task.space, start)) <= task.budget:
            return evolve_dropped(task, start)
    raise ValueError("a budget that no model without modules can meet")


def evolve_dropped(task: Task, start: Genome) -> Genome:
    """The best genome that evolution finds from `start`, which tells of each module whether it is gone, 1, or not, 0."""
    config = dataclasses.replace(task.search, train_tokens=[0] * len(task.search.train_tokens))
    fitness = TrainedFitness(task.assembler, task.train, task.teacher, config, task.seed, task.dtype)

    def scores(candidates: list[Genome], parent: Genome, stage: Stage, generation: int, index: int) -> list[float]:
        genomes = [in_levels(task.space, candidate) for candidate in candidates]
        return fitness(genomes, in_levels(task.space, parent), stage, generation, index)

    space = dense_or_gone(task.space)
    state = evolve(lambda: start, space, config, task.seed, scores, task.record(space))
    return in_levels(task.space, state.parent)


def dense_or_gone(space: Space) -> Space:
    """The same modules with two levels each."""
    return Space(tuple(dataclasses.replace(l, removed=(0, l.removed[-1])) for l in space.ladders))


def in_levels(space: Space, dropped: Genome) -> Genome:
    """A genome of `dense_or_gone(space)` as one of `space`."""
    return tuple(ladder.top if gone else 0 for ladder, gone in zip(space.ladders, dropped, strict=True))
