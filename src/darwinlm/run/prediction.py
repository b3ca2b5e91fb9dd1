"""What the steps of a recipe will take and give, from configurations alone: sizes, tokens, arithmetic, hours, memory, disk.

Hours are operations over the rate that `plan` says: peak x utilisation x devices. They are as good as that share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from darwinlm.config import RunConfig
from darwinlm.config.prediction import UPLOAD
from darwinlm.cost import (
    database_bytes,
    entering,
    forward_flops,
    generation_tokens,
    nominal_widths,
    plan_memory,
    rounded_bytes,
)
from darwinlm.data.blocks import SPLITS
from darwinlm.database.levels import Ladder, ladders
from darwinlm.errors import RequestError
from darwinlm.genome import Space
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.recovery.plan import training_cost
from darwinlm.run.arithmetic import (
    OPTIMIZER_BYTES,
    Passes,
    hessian_flops,
    judge_passes,
    pruning_flops,
    pruning_seconds,
    refit_passes,
    rounding_passes,
    rounding_seconds,
    start_passes,
)
from darwinlm.run.plan import planned_target
from darwinlm.run.recipe import Step

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
            f"{count(self.steps[0].before)} -> {count(last.after)} parameters; {self.machine}, of which "
            f"{self.assumption}: {f'{hours:.0f} hours' if hours >= 2 else f'{60 * hours:.1f} minutes'}, "
            f"{count(sum(piece.tokens for piece in work), 1)} tokens ({count(trained, 1)} of post-training), "
            f"{max(piece.memory_bytes for piece in work) / 1e9:.0f} GB on each, "
            f"{sum(piece.disk_bytes for piece in work) / 1e9:.0f} GB of disk"
        )


def count(number: int, digits: int = 2) -> str:
    """In millions or billions."""
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
    work = [_database_work(config, shape, rungs, memory.database, database_bytes(shape, rungs, value_bytes))]
    if formats := config.target.formats:
        tokens, length = config.blocks.hessian * config.blocks.sequence_length, config.blocks.sequence_length
        passes = rounding_passes(shape, rungs, tokens, len(formats), length)
        piece = _passes_work(config, "levels in formats", tokens, passes, memory.rounding)
        hours = piece.hours + rounding_seconds(rungs, shape.hidden, len(formats), config.plan.devices) / 3600
        work.append(replace(piece, hours=hours, disk_bytes=rounded_bytes(shape, rungs, formats)))
    if config.search.start == "linearized":
        passes = start_passes(shape, pruned, rungs, config.search, value_bytes, len(formats))
        work.append(_passes_work(config, "start", config.search.start_tokens, passes, memory.search))
    if config.search.generations:
        work.append(_evolution_work(config, shape, pruned, value_bytes, memory.search))
    if tokens := min(config.refit.tokens, config.blocks.hessian * config.blocks.sequence_length):
        length, judged = config.blocks.sequence_length, config.blocks.select * config.blocks.sequence_length
        passes = refit_passes(shape, pruned, tokens, length, value_bytes)
        passes += judge_passes(shape, pruned, judged, length, value_bytes)
        work.append(_passes_work(config, "refit", tokens, passes, memory.refit))
    exported = pruned.parameters * (4 if formats else value_bytes)  # what formats leave is kept in float32
    work[-1] = replace(work[-1], disk_bytes=work[-1].disk_bytes + exported)
    return work, pruned


def _passes_work(config: RunConfig, name: str, tokens: int, passes: Passes, memory: int) -> Work:
    """The ranks share the sequences or genomes out; each uploads all weights."""
    return Work(name, tokens, passes.bfloat16 + passes.float32, _hours(config, passes), memory, 0)


def _hours(config: RunConfig, passes: Passes) -> float:
    plan = config.plan
    products = passes.bfloat16 / plan.bfloat16_flops + passes.float32 / plan.float32_flops
    return (products / plan.devices + passes.uploaded / UPLOAD + passes.moved / plan.bytes_per_second) / 3600


def _database_work(config: RunConfig, shape: ModelShape, rungs: list[Ladder], memory: int, disk: int) -> Work:
    """Forward passes and Hessians are shared out by sequences, the modules of a block to the devices."""
    plan, blocks = config.plan, config.blocks
    tokens = blocks.hessian * blocks.sequence_length
    forward, moments = (
        tokens * forward_flops(shape, blocks.sequence_length, head=False),
        hessian_flops(shape, rungs, tokens),
    )
    pruning = sum(pruning_flops(ladder, shape.hidden) for ladder in rungs)
    seconds = (forward / plan.bfloat16_flops + moments / plan.float32_flops) / plan.devices
    seconds += pruning_seconds(rungs, shape.hidden, plan.devices, plan.float32_flops)
    disk += 4 * blocks.sequence_length * sum(getattr(blocks, name) for name in SPLITS)
    return Work("database", tokens, forward + moments + pruning, seconds / 3600, memory, disk)


def _evolution_work(config: RunConfig, dense: ModelShape, pruned: ModelShape, value_bytes: int, memory: int) -> Work:
    """Trial trainings and scores of all candidates; the busiest device decides how long."""
    search, devices = config.search, config.plan.devices
    whole, busiest = (_evolution_passes(config, dense, pruned, value_bytes, count) for count in (1, devices))
    hours = _hours(replace(config, plan=replace(config.plan, devices=1)), busiest)
    tokens = search.generations * sum(generation_tokens(search))
    return Work("evolution", tokens, whole.bfloat16 + whole.float32, hours, memory, 0)


def _evolution_passes(
    config: RunConfig, dense: ModelShape, pruned: ModelShape, value_bytes: int, devices: int
) -> Passes:
    """Of the busiest of so many devices."""
    search, length = config.search, config.blocks.sequence_length
    once, head = forward_flops(pruned, length), 2 * pruned.vocabulary * pruned.hidden
    trained, scored = (search.generations * tokens for tokens in generation_tokens(search, devices))
    built = search.generations * sum(-(-count // devices) for count in entering(search))
    scores = Passes(scored * (once - head), 2 * scored * head, built * pruned.parameters * value_bytes)
    if search.training == "refit":  # the devices share the sequences out
        refits = [
            refit_passes(dense, pruned, stage.train_tokens, length, value_bytes) * (count / devices)
            for count, stage in zip(entering(search), search.stages)
            if stage.train_tokens
        ]
        return sum(refits, Passes()) * search.generations + scores
    steps = trained / (search.batch_sequences * length)
    training = Passes(
        trained * once * (3 + search.gradient_checkpointing), moved=steps * pruned.parameters * OPTIMIZER_BYTES
    )
    if search.training == "distillation":  # of the dense model once a generation, and its head for every candidate
        text = search.generations * max(search.train_tokens)
        dense_pass = forward_flops(dense, length, head=False)
        training += Passes(text * dense_pass, trained * head, search.generations * dense.parameters * value_bytes)
    return training + scores


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
