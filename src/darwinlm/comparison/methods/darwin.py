"""DarwinLM itself, as one of the methods: with training-aware selection, without, and under a budget of parameters."""

from __future__ import annotations

import dataclasses
from functools import partial

from darwinlm.comparison.methods.task import Task
from darwinlm.config import SearchConfig
from darwinlm.cost import generation_tokens
from darwinlm.genome import Genome
from darwinlm.runtime.seeds import python_random
from darwinlm.search.fitness import Pools
from darwinlm.search.loop import diverse_founders, first_parent, search
from darwinlm.search.selection import TrainedFitness
from darwinlm.target.budget import Budget, uniform
from darwinlm.target.stock import StockBudget


def darwinlm(task: Task) -> Genome:
    """What `darwinlm search` finds with the same settings."""
    return searched(task, task.search, task.level_limits())


def darwinlm_untrained(task: Task) -> Genome:
    """The same search, but candidates are scored as they come from the database."""
    config = dataclasses.replace(task.search, train_tokens=[0] * len(task.search.train_tokens))
    return searched(task, config, task.level_limits())


def darwinlm_parameters(task: Task) -> Genome:
    """The search under the budget's parameters alone: attention and MLPs exchange what they keep."""
    return searched(task, task.search, task.parameter_limit())


def darwinlm_stock(task: Task) -> Genome:
    """The same search among models of one shape: layers are dropped whole, and all others are alike."""
    return searched(task, task.search, task.parameter_limit(shape="stock"))


def trial_tokens(task: Task) -> int:
    """Tokens that the candidates of the generations done were trained on; a space too small for all offspring takes fewer."""
    state = task.record(task.space).load()
    return state.generation * generation_tokens(task.search)[0] if state else 0


def searched(task: Task, config: SearchConfig, budget: Budget, start_name: str = "") -> Genome:
    """What a search ends with.

    Args:
        task: gives model, text and seed.
        config: of the search.
        budget: that every genome keeps.
        start_name: methods whose starts have one name share them; by default that of the budget.
    """
    pools, record = Pools(task.train, task.teacher, task.stream), task.record(task.space)
    stock = isinstance(budget, StockBudget)
    own = stock or task.memory is not None
    first = uniform(budget, python_random(task.seed, "start")) if own else task.uniform

    def start() -> Genome:  # it does not depend on trial training
        asked = (budget, task.assembler, pools, config, task.seed, record)
        name = start_name or ("start stock shape" if stock else f"start {budget.limits[0].name}")
        return task.once(name, lambda: first_parent(first, *asked))

    fitness = TrainedFitness(task.assembler, pools, config, task.seed, task.dtype)
    founders = partial(diverse_founders, budget, task.assembler, pools, config, task.seed) if config.diverse else None
    return search(start, task.space, budget, fitness, config, task.seed, record, founders=founders).parent
