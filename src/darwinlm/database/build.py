"""Build the level database: blocks stream through the device, each is calibrated, pruned and written.

Levels of all modules come from the activations of the model as it is, so they can be mixed freely (arXiv 2502.07780, 3.2).
Under torchrun the ranks share out the calibration sequences; each Hessian is added up where its module is pruned. As many
blocks as there are ranks make a round, in which every rank prunes an attention and an MLP and writes their files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from darwinlm.config import DatabaseConfig
from darwinlm.database.experts import ORDERS, Order, Ordering, Seen, expert_order, watched
from darwinlm.database.hessians import block_hessians
from darwinlm.database.levels import Ladder
from darwinlm.database.pruned import mixture_pruned, pruned
from darwinlm.database.store import NO_HESSIAN, Database, ModuleRecord
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
    orders: Mapping[str, Ordering] = ORDERS,
) -> None:
    """Complete a database, module by module; those that it already has are not made again.

    Args:
        database: empty or begun; the modules of every finished round are on disk at once.
        ladders: the modules wanted.
        stream: the model that is pruned.
        tokens: (S, T) calibration blocks, the same on all ranks.
        config: damping and batch.
        placement: where the hidden states of all sequences lie; by default in host memory.
        orders: ways of ordering the experts of a mixture; of each the best one is taken.

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
            own += _calibrated(wanted, stream, block, hidden, tokens.numel(), config, orders)
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
    mixture: tuple[Order, Tensor] | None = None
    """In which order its experts leave, and how many tokens took each (E,), of all ranks."""


def _taken(own: list[_Waiting]) -> Iterator[_Waiting]:
    """Each once, and let go of."""
    while own:
        yield own.pop(0)


def _calibrated(
    wanted: list[Ladder],
    stream: BlockStream,
    block: Block,
    hidden: Tensor,
    tokens: int,
    config: DatabaseConfig,
    orders: Mapping[str, Ordering],
) -> Iterator[_Waiting]:
    """Run a block, leave its outputs in `hidden`, and give those of its wanted modules that this rank prunes."""
    here: list[Kind] = [ladder.kind for ladder in wanted if ladder.columns]
    mixtures = [ladder for ladder in wanted if ladder.columns and ladder.rungs]
    length = hidden.shape[1]
    with watched(block, tokens // length) if mixtures else nullcontext(Seen()) as seen:
        hessians = block_hessians(
            stream, block, hidden, here, tokens, config.batch_sequences, hold_back=config.rel_damp == "auto"
        )
    shown = ranks.all_gather(seen) if mixtures else []
    for ladder in wanted:
        owner = (ladder.layer + (ladder.kind == "mlp")) % ranks.world_size()
        if ladder.columns:
            parts = ranks.reduce_to(hessians.pop(ladder.kind), owner)
            if parts is not None:
                weight = block.output_matrix(ladder.kind).weight.detach()
                mixture = _ordered(ladder, block, shown, orders) if ladder.rungs else None
                yield _Waiting(ladder, weight, parts, mixture)
        elif owner == ranks.rank():
            yield _Waiting(ladder)


def _ordered(ladder: Ladder, block: Block, shown: list[Seen], orders: Mapping[str, Ordering]) -> tuple[Order, Tensor]:
    inputs = ranks.interleave([seen.inputs for seen in shown])
    order = expert_order(block.mixture, inputs, ladder.rungs[ladder.present :], orders)
    return order, torch.stack([seen.tokens for seen in shown]).sum(0)


def _write_module(database: Database, waiting: _Waiting, config: DatabaseConfig, stream: BlockStream) -> ModuleRecord:
    """Prune a module and write its levels."""
    ladder, weight, parts, mixture = waiting
    if weight is None or parts is None:
        return database.write(ladder, (), stream.source.dtype, **NO_HESSIAN)
    dtype = stream.source.dtype_of(stream.source.family.output(ladder.layer, ladder.kind))
    if mixture is None:
        levels, facts = pruned(ladder, weight.float(), parts[:, 0], config.rel_damp, dtype)
    else:
        levels, facts = mixture_pruned(ladder, weight.float(), parts, *mixture, config.rel_damp, dtype)
    return database.write(ladder, levels, dtype, **facts)


def _warn_of_few_tokens(ladders: list[Ladder], tokens: int) -> None:
    """With fewer tokens than columns a Hessian has no full rank: damping alone decides between its null directions."""
    widest = max(ladder.columns // ladder.experts for ladder in ladders)
    if tokens < widest:
        log.warning(
            "The Hessians of %d columns see only %d tokens, so they are rank-deficient and rest on their damping. "
            "Calibrate on more tokens (blocks.hessian).",
            widest,
            tokens,
        )
