"""What a genome costs, from shapes alone: parameters, bytes on disk, memory of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.config import RunConfig
from darwinlm.database.levels import Ladder
from darwinlm.genome import Genome
from darwinlm.models.shape import LayerWidths, ModelShape


def nominal_widths(shape: ModelShape, ladders: Sequence[Ladder], genome: Genome) -> list[LayerWidths]:
    """Layer widths of a genome before it is known which heads leave.

    Where query heads leave one by one, K and V count in full until the module is gone, as the paper counts them.
    """
    layers = list(shape.layers)
    for ladder, level in zip(ladders, genome, strict=True):
        old = layers[ladder.layer]
        kept = ladder.columns - ladder.removed[level] * ladder.group_size
        if ladder.kind == "mlp":
            layers[ladder.layer] = LayerWidths(old.heads, old.kv_heads, kept)
        else:
            heads = kept // shape.head_dim
            whole_groups = ladder.group_size == shape.head_dim * (old.heads // old.kv_heads)
            kv_heads = kept // ladder.group_size if whole_groups else old.kv_heads * (heads > 0)
            layers[ladder.layer] = LayerWidths(heads, kv_heads, old.intermediate)
    return layers


def database_bytes(shape: ModelShape, ladders: Sequence[Ladder], bytes_per_value: int) -> int:
    """Size of the level database: the kept columns of every level between dense and gone."""
    kept = sum(ladder.columns - count * ladder.group_size for ladder in ladders for count in ladder.removed[1:-1])
    return kept * shape.hidden * bytes_per_value


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted peak memory of the stages, in bytes, on the device that computes."""

    database: int
    search: int
    hidden_states: int
    """Activations of the calibration blocks, in host memory while the database is built."""


def plan_memory(
    shape: ModelShape, pruned: ModelShape, config: RunConfig, bytes_per_value: int, compute_bytes: int
) -> MemoryPlan:
    """Peak memory of the database and the search, without what the runtime itself takes.

    The database holds one block, its Hessian and the four matrices of its size that OBS works on. The search holds the
    dense weights and one candidate in float32 with gradients and AdamW's two moments, and the candidate's activations.
    """
    widest = max(max(w.heads * shape.head_dim, w.intermediate) for w in shape.layers)
    block = shape.layer_parameters // len(shape.layers) * compute_bytes
    batch_tokens = config.database.batch_sequences * config.blocks.sequence_length
    database = block + 5 * 4 * widest**2 + batch_tokens * (widest + 4 * shape.hidden) * 4
    tokens = config.search.batch_sequences * config.blocks.sequence_length
    mean_width = sum(3 * w.intermediate + 4 * w.heads * shape.head_dim + 6 * shape.hidden for w in pruned.layers)
    activations = tokens * mean_width * 4 + min(tokens * shape.vocabulary, 1 << 24) * 8
    search = shape.parameters * bytes_per_value + pruned.parameters * 16 + activations
    hidden_states = config.blocks.hessian * config.blocks.sequence_length * shape.hidden * compute_bytes
    return MemoryPlan(database=database, search=search, hidden_states=hidden_states)
