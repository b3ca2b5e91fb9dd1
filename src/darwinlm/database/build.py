"""Build the level database: blocks stream through the device, each is calibrated, pruned and written.

Levels of all modules come from the dense model's activations, so they can be mixed freely (arXiv 2502.07780, 3.2).
"""

from __future__ import annotations

from torch import Tensor

from darwinlm.config import DatabaseConfig
from darwinlm.database.hessians import block_hessians, damp, drop_dead_columns, output_weights
from darwinlm.database.levels import Kind, Ladder
from darwinlm.database.obs import prune_groups
from darwinlm.database.store import Database
from darwinlm.errors import CalibrationError
from darwinlm.models.blocks import BlockStream
from darwinlm.runtime.progress import log, progress


def build_database(
    database: Database, ladders: list[Ladder], stream: BlockStream, tokens: Tensor, config: DatabaseConfig
) -> None:
    """Complete a database, module by module; those that it already has are not made again.

    Args:
        database: empty or begun; every finished module is on disk at once.
        ladders: the modules wanted.
        stream: the dense model.
        tokens: (S, T) calibration blocks.
        config: damping and batch.

    Raises:
        CalibrationError: the calibration does not determine a module; names it and says what to change.
    """
    missing = [ladder for ladder in ladders if ladder.name not in database.modules]
    if not missing:
        return
    last = max(ladder.layer for ladder in missing)
    hidden = stream.embed(tokens)
    with progress("Database", total=last + 1) as advance:
        for layer in range(last + 1):
            block = stream.load(layer)
            wanted: dict[Kind, Ladder] = {ladder.kind: ladder for ladder in missing if ladder.layer == layer}
            kinds = list(wanted)
            hessians = block_hessians(stream, block, hidden, kinds, config.batch_sequences)
            weights = output_weights(block, kinds)
            for kind, ladder in wanted.items():
                _add_module(database, ladder, weights[kind], hessians.pop(kind), config, stream)
            advance(f"layer {layer}")


def _add_module(
    database: Database, ladder: Ladder, weight: Tensor, hessian: Tensor, config: DatabaseConfig, stream: BlockStream
) -> None:
    weight, dead = drop_dead_columns(weight, hessian)
    damping = damp(hessian, config.rel_damp, ladder.name)
    levels = prune_groups(weight, hessian, group_size=ladder.group_size, counts=ladder.removed, rounds=ladder.rounds)
    try:
        record = database.add(ladder, levels, stream.source.dtype, damping, dead)
    except CalibrationError as fault:
        raise CalibrationError(f"{ladder.name}: {fault}") from fault
    middle = record.relative_errors[ladder.top // 2]
    dead_note = f", {dead} dead columns" if dead else ""
    log.debug(
        "%s: relative error %.4f at level %d of %d%s", ladder.name, middle, ladder.top // 2, ladder.top, dead_note
    )
