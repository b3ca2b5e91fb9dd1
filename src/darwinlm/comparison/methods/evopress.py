"""EvoPress (arXiv 2410.14649) for depth: evolution over which attention and MLP modules are gone, without training.

The evolution is the search's own in a space where a module is dense or gone: a level switch there puts one module back
and drops another of its kind. It begins, as there, with the best of many random genomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from darwinlm.comparison.methods.task import Task, uniform_at
from darwinlm.genome import Genome, Space
from darwinlm.runtime import ranks
from darwinlm.runtime.seeds import python_random
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Pools
from darwinlm.search.loop import search
from darwinlm.search.screen import untrained_kls
from darwinlm.search.selection import TrainedFitness
from darwinlm.target.budget import Budget, level_budget, uniform

STARTS = 32
"""Random genomes, the best of which the evolution begins with."""


def evopress(task: Task) -> Genome:
    """Drop as few modules, as many of each kind in proportion, as bring the parameters within the budget."""
    share = fewest_dropped(task)
    budget = level_budget(dense_or_gone(task.space), share)
    return evolve_dropped(task, budget, lambda: best_of_random(task, share))


def fewest_dropped(task: Task) -> float:
    """The least part of every kind of module that must go for the parameters to be within the budget."""
    space = dense_or_gone(task.space)
    layers = max(len(space.members(kind)) for kind in space.kinds)
    for share in (dropped / layers for dropped in range(1, layers + 1)):
        if task.parameters(in_levels(task.space, uniform_at(space, share, task.seed))) <= task.budget:
            return share
    raise ValueError("a budget that no model without modules can meet")


def best_of_random(task: Task, share: float) -> Genome:
    """The least KL to the dense model, on `search.start_tokens`, of `STARTS` genomes that drop `share` of every kind."""
    space, rng = dense_or_gone(task.space), python_random(task.seed, "random starts")
    drawn = sorted({uniform(level_budget(space, share), rng) for _ in range(STARTS)})
    found = untrained_kls(
        task.assembler, [in_levels(task.space, genome) for genome in drawn], task.targets(), task.dtype
    )
    kls = ranks.broadcast([kl.mean().item() for kl in found])
    return drawn[kls.index(min(kls))]


def evolve_dropped(task: Task, budget: Budget, start: Callable[[], Genome]) -> Genome:
    """The best genome that evolution finds from `start()`, which tells of each module whether it is gone, 1, or not, 0."""
    config = dataclasses.replace(task.search, train_tokens=[0] * len(task.search.train_tokens))
    pools = Pools(task.train, task.teacher, task.stream)
    fitness = TrainedFitness(task.assembler, pools, config, task.seed, task.dtype)
    space = dense_or_gone(task.space)

    def scores(step: Step) -> Tensor:
        levels = [in_levels(task.space, genome) for genome in step.candidates]
        return fitness(dataclasses.replace(step, candidates=levels, parent=in_levels(task.space, step.parent)))

    state = search(start, space, budget, scores, config, task.seed, task.record(space))
    return in_levels(task.space, state.parent)


def dense_or_gone(space: Space) -> Space:
    """The same modules with two levels each."""
    return Space(tuple(dataclasses.replace(l, removed=(0, l.removed[-1])) for l in space.ladders))


def in_levels(space: Space, dropped: Genome) -> Genome:
    """A genome of `dense_or_gone(space)` as one of `space`."""
    return tuple(ladder.top if gone else 0 for ladder, gone in zip(space.ladders, dropped, strict=True))
