"""What a run will cost and give, from the configuration alone: sizes, disk, memory, tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from darwinlm.baselines.uniform import uniform
from darwinlm.config import RunConfig, faults
from darwinlm.cost import MemoryPlan, database_bytes, generation_tokens, nominal_widths, plan_memory
from darwinlm.database.levels import ladders
from darwinlm.errors import RequestError
from darwinlm.genome import Space, require_open
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.runtime.device import choose_device, choose_dtype


@dataclass(frozen=True)
class SizeRow:
    """The uniform model of one level."""

    level: float
    parameters: int
    layer_parameters: int
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
    steps: dict[str, int]
    """Steps of each kind of module."""
    unsplit_steps: dict[str, int]
    """The same without `database.tensor_parallel`."""
    database_bytes: int
    memory: MemoryPlan
    hessian_tokens: int
    search_train_tokens: int
    """Tokens that all candidates of the whole search are trained on."""
    machine: str
    """What the memory is planned for: device and arithmetic."""
    search_select_tokens: int
    """Tokens that all candidates of the whole search are scored on."""


def make_plan(config: RunConfig) -> Plan:
    """Predict a run; reads the model's config.json and nothing else.

    Raises:
        RequestError: the settings do not fit the model, or each other.
    """
    if not config.model:
        raise RequestError("No model is given: a folder with a config.json, or a hub id.")
    if found := faults(config):
        raise RequestError(*found)
    source = ModelSource(config.model, weights=False, trust_remote_code=config.trust_remote_code)
    device = choose_device("auto") if config.device == "auto" else _device_of_any_machine(config.device)
    stored = getattr(source.config, "dtype", None) or torch.float32
    rungs = ladders(source.shape, config.database)
    space = Space(tuple(rungs))
    share = config.target.level / config.database.levels
    require_open(space, share)
    now = space.totals(space.present)

    def row(level: float) -> SizeRow:
        genome = uniform(space, level / config.database.levels, config.seed) if level else space.present
        return _row(level, source.shape.with_layers(nominal_widths(source.shape, rungs, genome)), stored.itemsize)

    unsplit = Space(tuple(ladders(source.shape, replace(config.database, tensor_parallel=1))))
    target = uniform(space, share, config.seed)
    pruned = source.shape.with_layers(nominal_widths(source.shape, rungs, target))
    compute = choose_dtype(config.dtype, device)
    train, select = (config.search.generations * tokens for tokens in generation_tokens(config.search))
    return Plan(
        dense=row(0),
        begun=any(space.present),
        levels=[
            row(level)
            for level in range(1, config.database.levels)
            if all(now[kind] <= total for kind, total in space.targets(level / config.database.levels).items())
        ],
        target=row(config.target.level),
        steps=_steps(space),
        unsplit_steps=_steps(unsplit),
        database_bytes=database_bytes(source.shape, rungs, stored.itemsize),
        memory=plan_memory(source.shape, pruned, config, stored.itemsize, compute, device.type == "cpu"),
        hessian_tokens=config.blocks.hessian * config.blocks.sequence_length,
        search_train_tokens=train,
        machine=f"{device.type}, {str(compute).removeprefix('torch.')}",
        search_select_tokens=select,
    )


def _steps(space: Space) -> dict[str, int]:
    return {kind: max(space.ladders[i].top for i in space.members(kind)) for kind in space.kinds}


def _device_of_any_machine(name: str) -> torch.device:
    """A plan may be for a machine with another device than this one."""
    try:
        return torch.device(name)
    except RuntimeError as fault:
        raise RequestError(f"There is no kind of device '{name}'. Plan for cpu or cuda.") from fault


def _row(level: float, shape: ModelShape, value_bytes: int) -> SizeRow:
    return SizeRow(
        level=level,
        parameters=shape.parameters,
        layer_parameters=shape.layer_parameters,
        kv_cache_values_per_token=shape.kv_cache_values_per_token,
        checkpoint_bytes=shape.parameters * value_bytes,
    )
