"""DarwinLM itself, as one of the methods: with training-aware selection, and without."""

from __future__ import annotations

import dataclasses

from darwinlm.baselines.task import Task
from darwinlm.config import SearchConfig
from darwinlm.cost import generation_tokens
from darwinlm.genome import Genome
from darwinlm.search.evolution import evolve
from darwinlm.search.selection import TrainedFitness
from darwinlm.search.start import first_parent


def darwinlm(task: Task) -> Genome:
    """What `darwinlm search` finds with the same settings."""
    return _search(task, task.search)


def darwinlm_untrained(task: Task) -> Genome:
    """The same search, but candidates are scored as they come from the database."""
    return _search(task, dataclasses.replace(task.search, train_tokens=[0] * len(task.search.train_tokens)))


def trial_tokens(task: Task) -> int:
    """Tokens that the candidates of the generations done were trained on; a space too small for all offspring takes fewer."""
    state = task.record(task.space).load()
    return state.generation * generation_tokens(task.search)[0] if state else 0


def _search(task: Task, config: SearchConfig) -> Genome:
    fitness = TrainedFitness(task.assembler, task.train, task.teacher, config, task.seed, task.dtype)
    return evolve(lambda: _start(task), task.space, config, task.seed, fitness, task.record(task.space)).parent


def _start(task: Task) -> Genome:
    """The first parent; it does not depend on trial training."""
    asked = (task.uniform, task.assembler, task.teacher, task.search, task.seed, task.dtype)
    return task.once("start", lambda: first_parent(*asked))
