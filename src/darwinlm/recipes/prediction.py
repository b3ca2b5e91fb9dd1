"""What the steps of a recipe will take and give, from configurations alone: sizes, tokens, arithmetic, hours, memory, disk.

Hours are operations over the rate that `plan` says: peak x utilisation x devices. They are as good as that share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from darwinlm.config import RunConfig
from darwinlm.cost import database_bytes, nominal_widths, plan_memory
from darwinlm.data.blocks import SPLITS
from darwinlm.database.levels import Ladder, ladders
from darwinlm.errors import RequestError
from darwinlm.genome import Space
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.planning import planned_target
from darwinlm.recipes.arithmetic import forward_flops, hessian_flops, pruning_flops, pruning_seconds, search_passes
from darwinlm.recipes.recipe import Step
from darwinlm.recovery.plan import training_cost

_ARITHMETIC = torch.bfloat16


@dataclass(frozen=True)
class Work:
    """One piece of a step's work."""

    name: str
    tokens: int
    """That all devices together pass through the model."""
    flops: float
    """Of all devices together."""
    hours: float
    memory_bytes: int
    """At the peak, on each device."""
    disk_bytes: int


@dataclass(frozen=True)
class StepPrediction:
    """One step."""

    name: str
    before: int
    """Parameters of the model that comes in."""
    after: int
    """Parameters of the model that goes out: of the uniform one where a search decides."""
    work: list[Work]


@dataclass(frozen=True)
class RecipePrediction:
    """All steps, on one kind of machine."""

    machine: str
    memory_bytes: int
    """Of a device."""
    assumption: str
    steps: list[StepPrediction]

    @property
    def work(self) -> list[Work]:
        """All of it, in order."""
        return [piece for step in self.steps for piece in step.work]

    @property
    def headline(self) -> str:
        """The whole in one line: what a recipe says of itself in its head."""
        work, last = self.work, self.steps[-1]
        trained = sum(piece.tokens for piece in work if piece.name == "training")
        hours = sum(piece.hours for piece in work)
        return (
            f"{_count(self.steps[0].before)} -> {_count(last.after)} parameters; {self.machine}, of which "
            f"{self.assumption}: {f'{hours:.0f} hours' if hours >= 2 else f'{60 * hours:.1f} minutes'}, "
            f"{_count(sum(piece.tokens for piece in work), 1)} tokens ({_count(trained, 1)} of post-training), "
            f"{max(piece.memory_bytes for piece in work) / 1e9:.0f} GB on each, "
            f"{sum(piece.disk_bytes for piece in work) / 1e9:.0f} GB of disk"
        )


def _count(number: int, digits: int = 2) -> str:
    return f"{number / 1e9:.{digits}f} B" if number >= 1e9 else f"{number / 1e6:.{digits}f} M"


def predict_recipe(steps: list[Step]) -> RecipePrediction:
    """Predict a recipe; reads the first model's config.json and nothing else.

    Args:
        steps: from `Recipe.resolved`.

    Raises:
        RequestError: the settings of a step do not fit the model that reaches it; names the step.
    """
    config = steps[0].config
    source = ModelSource(config.model, weights=False)
    value_bytes = (getattr(source.config, "dtype", None) or torch.float32).itemsize
    shape, found = source.shape, []
    for step in steps:
        try:
            work, after = _PREDICT[step.command](step.config, shape, value_bytes)
        except RequestError as fault:
            raise RequestError(*(f"Step {step.name}: {message}" for message in fault.faults)) from fault
        found.append(StepPrediction(step.name, shape.parameters, after.parameters, work))
        shape = after
    plan = config.plan
    return RecipePrediction(
        machine=f"{plan.devices} x {plan.kind}",
        memory_bytes=plan.memory_bytes,
        assumption=f"{plan.utilisation:.0%} of the peak rate is reached",
        steps=found,
    )


def predict_pruning(config: RunConfig) -> RecipePrediction:
    """Predict `darwinlm prune` alone, as `predict_recipe` does."""
    return predict_recipe([Step("prune", "prune", config)])


def _prune(config: RunConfig, shape: ModelShape, value_bytes: int) -> tuple[list[Work], ModelShape]:
    """Database and search; what goes out is the uniform model of the target."""
    rungs = ladders(shape, config.database)
    space = Space(tuple(rungs))
    genome, _ = planned_target(config, shape, space, value_bytes, torch.device("cuda"), _ARITHMETIC)
    pruned = shape.with_layers(nominal_widths(shape, rungs, genome))
    memory = plan_memory(shape, pruned, config, value_bytes, _ARITHMETIC, on_host=False)
    return [
        _database_work(config, shape, rungs, memory.database, database_bytes(shape, rungs, value_bytes)),
        _search_work(config, pruned, rungs, memory.search, pruned.parameters * value_bytes),
    ], pruned


def _database_work(config: RunConfig, shape: ModelShape, rungs: list[Ladder], memory: int, disk: int) -> Work:
    """Forward passes and Hessians are shared out by sequences, the modules of a block to the devices."""
    plan, blocks = config.plan, config.blocks
    tokens = blocks.hessian * blocks.sequence_length
    forward, moments = tokens * forward_flops(shape, blocks.sequence_length, head=False), hessian_flops(rungs, tokens)
    pruning = sum(pruning_flops(ladder, shape.hidden) for ladder in rungs)
    seconds = (forward / plan.bfloat16_flops + moments / plan.float32_flops) / plan.devices
    seconds += pruning_seconds(rungs, shape.hidden, plan.devices, plan.float32_flops)
    disk += 4 * blocks.sequence_length * sum(getattr(blocks, name) for name in SPLITS)
    return Work("database", tokens, forward + moments + pruning, seconds / 3600, memory, disk)


def _search_work(config: RunConfig, pruned: ModelShape, rungs: list[Ladder], memory: int, disk: int) -> Work:
    """Trial trainings and scores of all candidates; the busiest device decides how long."""
    plan, once = config.plan, forward_flops(pruned, config.blocks.sequence_length)
    pass_and_back = once * (3 + config.search.gradient_checkpointing)
    train, select = search_passes(config.search, rungs, 1)
    busiest = search_passes(config.search, rungs, plan.devices)
    hours = (busiest[0] * pass_and_back + busiest[1] * once) / plan.bfloat16_flops / 3600
    return Work("search", train + select, train * pass_and_back + select * once, hours, memory, disk)


def _train(config: RunConfig, shape: ModelShape, value_bytes: int) -> tuple[list[Work], ModelShape]:
    """Post-training: two saved states lie on the disk for a moment, and the result."""
    plan, train = config.plan, config.train
    teacher = ModelSource(train.teacher, weights=False).shape if train.teacher else None
    cost = training_cost(shape, train, _ARITHMETIC, devices=plan.devices, teacher=teacher)
    work = Work(
        "training",
        cost.optimizer_steps * train.batch_tokens,
        cost.flops,
        cost.flops / plan.bfloat16_flops / plan.devices / 3600,
        cost.memory_bytes,
        shape.parameters * value_bytes + 2 * 12 * cost.trained_parameters,
    )
    return [work], shape


_PREDICT: dict[str, Callable[[RunConfig, ModelShape, int], tuple[list[Work], ModelShape]]] = {
    "prune": _prune,
    "train": _train,
}
