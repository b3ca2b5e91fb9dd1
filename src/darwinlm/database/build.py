"""Build the level database: blocks stream through the device, each is calibrated, pruned and written.

Levels of all modules come from the activations of the model as it is, so they can be mixed freely (arXiv 2502.07780, 3.2).
Under torchrun the ranks share out the calibration sequences; each Hessian is added up where its module is pruned. As many
blocks as there are ranks make a round, in which every rank prunes an attention and an MLP and writes their files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from darwinlm.config import DatabaseConfig
from darwinlm.database.damping import attempts, best, held_out_errors
from darwinlm.database.hessians import block_hessians, damp, drop_dead_columns
from darwinlm.database.experts import expert_levels
from darwinlm.database.levels import Ladder
from darwinlm.database.obs import PrunedLevel, prune_groups
from darwinlm.database.store import NO_HESSIAN, Database, ModuleRecord
from darwinlm.errors import CalibrationError
from darwinlm.models.blocks import BlockStream
from darwinlm.models.sites import Kind
from darwinlm.models.stock import Block
from darwinlm.runtime import ranks
from darwinlm.runtime.placement import Placement
from darwinlm.runtime.progress import log, progress


def build_database(
    database: Database,
    ladders: list[Ladder],
    stream: BlockStream,
    tokens: Tensor,
    config: DatabaseConfig,
    placement: Placement | None = None,
) -> None:
    """Complete a database, module by module; those that it already has are not made again.

    Args:
        database: empty or begun; the modules of every finished round are on disk at once.
        ladders: the modules wanted.
        stream: the model that is pruned.
        tokens: (S, T) calibration blocks, the same on all ranks.
        config: damping and batch.
        placement: where the hidden states of all sequences lie; by default in host memory.

    Raises:
        CalibrationError: the calibration does not determine a module; names it and says what to change.
    """
    missing = [ladder for ladder in ladders if ladder.name not in database.modules]
    if not missing:
        return
    _warn_of_few_tokens(missing, tokens.numel())
    last = max(ladder.layer for ladder in missing)
    hidden = stream.embed(tokens[ranks.rank() :: ranks.world_size()], placement)
    own: list[_Waiting] = []
    with progress("Database", total=last + 1) as advance:
        for layer, block in enumerate(stream.blocks(last + 1)):
            wanted = [ladder for ladder in missing if ladder.layer == layer]
            own += _calibrated(wanted, stream, block, hidden, tokens.numel(), config)
            if (layer + 1) % ranks.world_size() == 0 or layer == last:
                records = [_write_module(database, waiting, config, stream) for waiting in _taken(own)]
                everyone = [record for share in ranks.all_gather(records) for record in share]
                database.admit(everyone, save=bool(everyone) and ranks.is_first())
            advance(f"layer {layer}")
    ranks.barrier()


class _Waiting(NamedTuple):
    """A module of this rank that is to be pruned; without columns it was gone before, and has no tensors."""

    ladder: Ladder
    weight: Tensor | None = None
    parts: Tensor | None = None
    """(P, E, C / E, C / E): as `block_hessians` gives them, of all ranks."""


def _taken(own: list[_Waiting]) -> Iterator[_Waiting]:
    """Each once, and let go of."""
    while own:
        yield own.pop(0)


def _calibrated(
    wanted: list[Ladder], stream: BlockStream, block: Block, hidden: Tensor, tokens: int, config: DatabaseConfig
) -> Iterator[_Waiting]:
    """Run a block, leave its outputs in `hidden`, and give those of its wanted modules that this rank prunes."""
    here: list[Kind] = [ladder.kind for ladder in wanted if ladder.columns]
    choose = config.rel_damp == "auto"
    hessians = block_hessians(stream, block, hidden, here, tokens, config.batch_sequences, hold_back=choose)
    for ladder in wanted:
        owner = (ladder.layer + (ladder.kind == "mlp")) % ranks.world_size()
        if ladder.columns:
            parts = ranks.reduce_to(hessians.pop(ladder.kind), owner)
            if parts is not None:
                yield _Waiting(ladder, block.output_matrix(ladder.kind).weight.detach(), parts)
        elif owner == ranks.rank():
            yield _Waiting(ladder)


def _write_module(database: Database, waiting: _Waiting, config: DatabaseConfig, stream: BlockStream) -> ModuleRecord:
    """Prune a module and write its levels."""
    ladder, weight, parts = waiting
    if weight is None or parts is None:
        return database.write(ladder, (), stream.source.dtype, **NO_HESSIAN)
    dtype = stream.source.dtype_of(stream.source.family.output(ladder.layer, ladder.kind))
    if ladder.rungs:
        levels, facts = _experts_pruned(ladder, weight.float(), parts, config, dtype)
    else:
        levels, facts = _pruned(ladder, weight.float(), parts[:, 0], config, dtype)
    return database.write(ladder, levels, dtype, **facts)


def _pruned(
    ladder: Ladder, weight: Tensor, parts: Tensor, config: DatabaseConfig, dtype: torch.dtype
) -> tuple[list[PrunedLevel], dict[str, Any]]:
    """Choose the damping and prune: in float64 where float32 cannot, damped more where that cannot either."""
    choice = _errors(ladder, weight, parts)
    asked = best(choice) if config.rel_damp == "auto" else config.rel_damp
    hessian = parts[0].add_(parts[1]) if len(parts) > 1 else parts[0]
    weight, dead = drop_dead_columns(weight, hessian)
    undamped, fault = hessian.diagonal().clone(), None
    for rel_damp, precision in attempts(asked):
        hessian.diagonal().copy_(undamped)
        matrix = hessian.to(precision)
        damping = damp(matrix, rel_damp, ladder.name)
        try:
            levels = [
                replace(level, weight=level.weight.to("cpu", dtype))
                for level in prune_groups(
                    weight, matrix, group_size=ladder.group_size, counts=ladder.open_counts, rounds=ladder.rounds
                )
            ]
        except CalibrationError as cause:
            fault = cause
            continue
        _tell(ladder.name, dead, rel_damp, precision, asked)
        name = str(precision).removeprefix("torch.")
        facts = {"rel_damp": rel_damp, "precision": name, "held_out_errors": choice}
        return levels, {**facts, "damping": damping, "dead_columns": dead}
    raise CalibrationError(f"{ladder.name}, in float64 and with a relative damping of {rel_damp:g}: {fault}") from fault


def _experts_pruned(
    ladder: Ladder, weight: Tensor, parts: Tensor, config: DatabaseConfig, dtype: torch.dtype
) -> tuple[list[PrunedLevel], dict[str, Any]]:
    """Each expert at every width, by its own Hessian; those whose outputs carry least leave first.

    Args:
        ladder: with rungs.
        weight: (R, E I).
        parts: (P, E, I, I).
        config: damping.
    """
    count, width = ladder.rungs[ladder.present]
    widths = sorted({wide for _, wide in ladder.rungs[ladder.present :]}, reverse=True)
    found = []
    for expert, own in enumerate(weight.chunk(count, 1)):
        name, removed = f"{ladder.name}.experts.{expert}", tuple(width - wide for wide in widths)
        one = replace(ladder, name=name, columns=width, removed=removed, rungs=(), present=0)
        if not parts[:, expert].any():
            log.warning("%s: no calibration token takes it; it leaves first.", name)
        found.append(_pruned(one, own, parts[:, expert], config, dtype))
    levels = expert_levels([own for own, _ in found], widths, ladder.rungs[ladder.present :])
    facts = [each for _, each in found]
    dampings = [each["damping"] for each in facts]
    return levels, {
        "damping": sum(dampings) / len(dampings),
        "dead_columns": sum(each["dead_columns"] for each in facts),
        "rel_damp": max(each["rel_damp"] for each in facts),
        "precision": max(each["precision"] for each in facts),
    }


def _errors(ladder: Ladder, weight: Tensor, parts: Tensor) -> dict[str, float]:
    """By damping, at the middle level; empty where nothing was held back, or no level lies between dense and gone."""
    if len(parts) == 1 or not ladder.between or not parts[1].any():
        return {}
    removed = ladder.between[len(ladder.between) // 2]
    return held_out_errors(weight, parts[0], parts[1], ladder.group_size, removed)


def _tell(name: str, dead: int, rel_damp: float, precision: torch.dtype, asked: float) -> None:
    if dead:
        log.info("%s: %d columns were never active; they leave first.", name, dead)
    if rel_damp != asked:
        log.warning("%s: damped by %g instead of %g, where float64 cannot factor its Hessian.", name, rel_damp, asked)
    elif precision == torch.float64:
        log.info("%s: pruned in float64; float32 cannot factor its Hessian.", name)


def _warn_of_few_tokens(ladders: list[Ladder], tokens: int) -> None:
    """With fewer tokens than columns a Hessian has no full rank: damping alone decides between its null directions."""
    widest = max(ladder.columns for ladder in ladders)
    if tokens < widest:
        log.warning(
            "The Hessians of %d columns see only %d tokens, so they are rank-deficient and rest on their damping. "
            "Calibrate on more tokens (blocks.hessian).",
            widest,
            tokens,
        )
