"""What a run will cost and give, from the configuration alone: sizes, disk, memory, tokens."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, replace

import torch

from darwinlm.config import RunConfig, described
from darwinlm.config.quantities import Quantity
from darwinlm.cost import (
    MemoryPlan,
    Work,
    database_bytes,
    database_need,
    generation_tokens,
    nominal_module,
    nominal_widths,
    plan_memory,
    refit_need,
    rounded_bytes,
    rounding_need,
    search_need,
    survivors_tokens,
)
from darwinlm.database.levels import Ladder, ladders
from darwinlm.errors import RequestError
from darwinlm.genome import Genome, Space
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.memory import free_bytes, misfits
from darwinlm.runtime.progress import log
from darwinlm.runtime.seeds import python_random
from darwinlm.target.budget import level_budget, uniform
from darwinlm.target.target import target_of


@dataclass(frozen=True)
class SizeRow:
    """The uniform model of one level."""

    level: float
    parameters: int
    layer_parameters: int
    active_layer_parameters: int
    """Those that a token passes through: fewer where there are experts."""
    kv_cache_values_per_token: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Plan:
    """What `darwinlm plan` prints."""

    dense: SizeRow
    """The model as it is."""
    begun: bool
    """Whether it is pruned already."""
    levels: list[SizeRow]
    target: SizeRow
    """The uniform model that meets the target; its level is the mean of all modules."""
    target_name: str
    limits: dict[str, dict[str, float]]
    """Quantity -> what is asked, what the uniform model has, what is the smallest."""
    steps: dict[str, int]
    """Steps of each kind of module."""
    unsplit_steps: dict[str, int]
    """The same without `database.tensor_parallel`."""
    database_bytes: int
    rounded_bytes: int
    """Of levels in formats; 0 where there are none."""
    memory: MemoryPlan
    misfits: list[str]
    """What does not fit into the memory of the device at hand, or of the one that is asked for."""
    hessian_tokens: int
    search_train_tokens: int
    """Tokens that all candidates of the whole search are trained on, anew at every selection step."""
    search_survivors_tokens: int
    """Those of them that are not trained on where survivors are kept between steps."""
    machine: str
    """What the memory is planned for: device and arithmetic."""
    search_select_tokens: int
    """Tokens that all candidates of the whole search are scored on."""


def make_plan(config: RunConfig) -> Plan:
    """Predict a run; reads the model's config.json and nothing else.

    Raises:
        RequestError: the settings do not fit the model, or each other.
    """
    source = ModelSource(config.model, weights=False)
    try:
        source.require_context(config.blocks.sequence_length)
    except RequestError as fault:
        log.warning("%s As it stands, this is planned, and `darwinlm prune` would refuse it.", fault)
    device = _device(config)
    rungs = ladders(source.shape, config.database)
    space = Space(tuple(rungs))
    work, target, limits = _predicted(config, source, rungs, space, device)
    bytes_each, pruned = work.value_bytes, work.pruned
    now = space.totals(space.present)

    def row(level: float) -> SizeRow:
        return _row(level, _uniform_shape(config, source.shape, space, level), bytes_each)

    unsplit = Space(tuple(ladders(source.shape, replace(config.database, tensor_parallel=1))))
    mean = config.database.levels * sum(level / l.top for level, l in zip(target, rungs)) / len(rungs)
    generations = config.search.generations
    train, select = (generations * tokens for tokens in generation_tokens(config.search))
    return Plan(
        dense=row(0),
        begun=any(space.present),
        levels=[
            row(level)
            for level in range(1, config.database.levels)
            if all(now[kind] <= total for kind, total in space.targets(level / config.database.levels).items())
        ],
        target=_row(round(mean, 4), pruned, bytes_each),
        target_name=described(config.target, config.database.levels),
        limits=limits,
        steps=_steps(space),
        unsplit_steps=_steps(unsplit),
        database_bytes=database_bytes(source.shape, rungs, bytes_each),
        rounded_bytes=rounded_bytes(source.shape, rungs, config.target.formats),
        memory=plan_memory(*work),
        misfits=misfits(
            [need(work) for need in (database_need, rounding_need, search_need, refit_need)],
            *_memory_there(config, device),
        ),
        hessian_tokens=config.blocks.hessian * config.blocks.sequence_length,
        search_train_tokens=train,
        search_survivors_tokens=generations * survivors_tokens(config.search) * config.search.continue_training,
        machine=f"{device.type}, {str(work.compute).removeprefix('torch.')}",
        search_select_tokens=select,
    )


def level_of(config: RunConfig, size: Quantity) -> float:
    """The least level, in twentieths, whose uniform model has at most so many parameters; reads config.json and nothing else.

    Raises:
        RequestError: none has.
    """
    shape = ModelSource(config.model, weights=False).shape
    space, most = Space(tuple(ladders(shape, config.database))), size.of(shape.parameters)

    def parameters(twentieths: int) -> int:
        return _uniform_shape(config, shape, space, twentieths / 20).parameters

    last = 20 * config.database.levels - 1
    if (least := parameters(last)) > most:
        raise RequestError(
            f"{most:,} parameters are fewer than the uniform model of level {last / 20:g} has: {least:,}."
        )
    return (1 + bisect.bisect_left(range(1, last), True, key=lambda step: parameters(step) <= most)) / 20


def _uniform_shape(config: RunConfig, shape: ModelShape, space: Space, level: float) -> ModelShape:
    genome = uniform(level_budget(space, level / config.database.levels), python_random(config.seed, "start"))
    return shape.with_layers(nominal_widths(shape, space.ladders, genome))


def predicted_work(config: RunConfig, source: ModelSource, device: torch.device) -> Work:
    """What memory of a run is predicted from; reads the model's config.json and nothing else.

    Raises:
        RequestError: the target cannot be reached.
    """
    rungs = ladders(source.shape, config.database)
    return _predicted(config, source, rungs, Space(tuple(rungs)), device)[0]


def _predicted(
    config: RunConfig, source: ModelSource, rungs: list[Ladder], space: Space, device: torch.device
) -> tuple[Work, Genome, dict[str, dict[str, float]]]:
    """The work, the uniform genome at the target, and how that meets its limits."""
    stored = (getattr(source.config, "dtype", None) or torch.float32).itemsize
    compute = choose_dtype(config.dtype, device)
    target, limits = planned_target(config, source.shape, space, stored, device, compute)
    pruned = source.shape.with_layers(nominal_widths(source.shape, rungs, target))
    return Work(source.shape, pruned, config, stored, compute, device.type == "cpu"), target, limits


def _device(config: RunConfig) -> torch.device:
    """What is planned for: the kind of GPU that is asked for, another device by its name, or what is here."""
    if config.device != "auto":
        return _device_of_any_machine(config.device)
    return torch.device("cuda") if config.plan.device else choose_device("auto")


def _memory_there(config: RunConfig, device: torch.device) -> tuple[str, int | None, int | None]:
    """As `misfits` wants it: of a GPU that is not here, the memory of its kind."""
    if device.type == "cpu":
        return "this machine", free_bytes(device), None
    if config.plan.device or not torch.cuda.is_available():
        return f"an {config.plan.kind}", config.plan.memory_bytes, None
    return f"'{device}'", free_bytes(device), free_bytes(torch.device("cpu"))


def planned_target(
    config: RunConfig, shape: ModelShape, space: Space, value_bytes: int, device: torch.device, dtype: torch.dtype
) -> tuple[Genome, dict[str, dict[str, float]]]:
    """The levels of the uniform genome that meets the target, and how its limits are met.

    Args:
        config: target and seed count.
        shape: the model that is pruned.
        space: its modules, in one format.
        value_bytes: of a stored weight.
        device: that a run would compute on.
        dtype: arithmetic of the run.

    Raises:
        RequestError: the target cannot be reached.
    """
    space = Space.of(space.ladders, config.target.formats)
    target = target_of(config, shape, space, value_bytes, device, dtype)
    widths = functools.partial(nominal_module, shape)
    target.require_reachable(widths)
    found = uniform(target.budget(widths), python_random(config.seed, "start"))
    return tuple(space.levels_of(found).values()), target.achieved(found, widths)


def _steps(space: Space) -> dict[str, int]:
    return {kind: max(space.ladders[i].top for i in space.members(kind)) for kind in space.kinds}


def _device_of_any_machine(name: str) -> torch.device:
    """A plan may be for a machine with another device than this one."""
    try:
        return torch.device(name)
    except RuntimeError as fault:
        raise RequestError(
            f"There is no device '{name}'. Give --device cpu or cuda; --plan.device says of which kind, such as H100."
        ) from fault


def _row(level: float, shape: ModelShape, value_bytes: int) -> SizeRow:
    return SizeRow(
        level=level,
        parameters=shape.parameters,
        layer_parameters=shape.layer_parameters,
        active_layer_parameters=shape.active_layer_parameters,
        kv_cache_values_per_token=shape.kv_cache_values_per_token,
        checkpoint_bytes=shape.parameters * value_bytes,
    )
