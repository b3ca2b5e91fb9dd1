"""DarwinLM itself, as one of the methods: with training-aware selection, without, and under a budget of parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from darwinlm.baselines.task import Task
from darwinlm.config import SearchConfig
from darwinlm.cost import generation_tokens
from darwinlm.genome import Genome
from darwinlm.search.evolution import evolve
from darwinlm.search.mutation import Mutation, offspring, offspring_within
from darwinlm.search.selection import TrainedFitness
from darwinlm.search.start import first_parent
from darwinlm.search.start_within import first_parent_within


def darwinlm(task: Task) -> Genome:
    """What `darwinlm search` finds with the same settings."""
    return _search(task, task.search)


def darwinlm_untrained(task: Task) -> Genome:
    """The same search, but candidates are scored as they come from the database."""
    return _search(task, dataclasses.replace(task.search, train_tokens=[0] * len(task.search.train_tokens)))


def darwinlm_parameters(task: Task) -> Genome:
    """The search under the budget's parameters alone: attention and MLPs exchange what they keep."""
    budget = task.parameter_limit()
    asked = (task.uniform, budget, task.assembler, task.teacher, task.search, task.seed, task.dtype)
    mutate = functools.partial(offspring_within, budget=budget)
    return _evolved(task, task.search, lambda: first_parent_within(*asked), mutate)


def trial_tokens(task: Task) -> int:
    """Tokens that the candidates of the generations done were trained on; a space too small for all offspring takes fewer."""
    state = task.record(task.space).load()
    return state.generation * generation_tokens(task.search)[0] if state else 0


def _search(task: Task, config: SearchConfig) -> Genome:
    asked = (task.uniform, task.assembler, task.teacher, task.search, task.seed, task.dtype)

    def first() -> Genome:  # it does not depend on trial training
        return task.once("start", lambda: first_parent(*asked))

    return _evolved(task, config, first, offspring)


def _evolved(task: Task, config: SearchConfig, start: Callable[[], Genome], mutate: Mutation) -> Genome:
    fitness = TrainedFitness(task.assembler, task.train, task.teacher, config, task.seed, task.dtype)
    asked = (start, task.space, config, task.seed, fitness, task.record(task.space))
    return evolve(*asked, mutate=mutate, uncertainty=fitness.uncertainty).parent
