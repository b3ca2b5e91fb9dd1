"""What a genome costs, from shapes alone: parameters, bytes on disk, memory of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from darwinlm.config import RunConfig, SearchConfig
from darwinlm.database.levels import Ladder
from darwinlm.genome import Genome
from darwinlm.models.shape import LayerWidths, ModelShape


def nominal_widths(shape: ModelShape, ladders: Sequence[Ladder], genome: Genome) -> list[LayerWidths]:
    """Layer widths of a genome before it is known which heads leave.

    Where query heads leave one by one, K and V count in full until the module is gone, as the paper counts them.
    """
    layers = list(shape.layers)
    for ladder, level in zip(ladders, genome, strict=True):
        old, new = layers[ladder.layer], nominal_module(shape, ladder, level)
        if ladder.kind == "mlp":
            layers[ladder.layer] = replace(old, intermediate=new.intermediate)
        else:
            layers[ladder.layer] = replace(new, intermediate=old.intermediate)
    return layers


def nominal_module(shape: ModelShape, ladder: Ladder, level: int) -> LayerWidths:
    """The same of one module, in an otherwise absent layer."""
    kept = ladder.columns - ladder.removed[level] * ladder.group_size
    if ladder.kind == "mlp":
        return LayerWidths(0, 0, kept)
    now, heads = shape.layers[ladder.layer], kept // shape.head_dim
    if level <= ladder.present:  # as it is, padding included
        return replace(now, intermediate=0)
    whole_groups = ladder.group_size == shape.head_dim * (now.heads // now.kv_heads)
    return LayerWidths(heads, kept // ladder.group_size if whole_groups else now.kv_heads * (heads > 0), 0)


def database_bytes(shape: ModelShape, ladders: Sequence[Ladder], bytes_per_value: int) -> int:
    """Size of the level database: the kept columns of every level between dense and gone."""
    kept = sum(ladder.columns - count * ladder.group_size for ladder in ladders for count in ladder.between)
    return kept * shape.hidden * bytes_per_value


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted peak memory of the stages, in bytes, on the device that computes."""

    database: int
    search: int
    hidden_states: int
    """Activations of the calibration blocks, in host memory while the database is built."""
    survivors: int
    """Weights and moments of the survivors of a selection step, kept for the next one where there is room."""


def plan_memory(
    shape: ModelShape, pruned: ModelShape, config: RunConfig, value_bytes: int, compute: torch.dtype, on_host: bool
) -> MemoryPlan:
    """Peak memory of the database and the search, without what the runtime itself takes.

    The database holds one block, its Hessian and the four matrices of its size that OBS works on. The search holds one
    candidate in training and the dense head in float32; where the host itself computes, the dense weights, too.

    Args:
        shape: the dense model.
        pruned: the model at the target.
        config: of the run.
        value_bytes: of a stored weight.
        compute: arithmetic of the forward passes.
        on_host: whether device and host share one memory.
    """
    widest = max(max(w.heads * shape.head_dim, w.intermediate) for w in shape.layers)
    block = shape.layer_parameters // len(shape.layers) * compute.itemsize
    batch_tokens = config.database.batch_sequences * config.blocks.sequence_length
    database = block + 5 * 4 * widest**2 + batch_tokens * (widest + 4 * shape.hidden) * 4
    weights = compute if config.search.weights == "auto" else getattr(torch, config.search.weights)
    search = (
        trial_memory(pruned, config.search, config.blocks.sequence_length, weights)
        + shape.vocabulary * shape.hidden * 4
    )
    if on_host:
        search += shape.parameters * value_bytes
    hidden_states = config.blocks.hessian * config.blocks.sequence_length * shape.hidden * compute.itemsize
    survivors = max(config.search.survivors[:-1], default=0) * pruned.parameters * 3 * weights.itemsize
    return MemoryPlan(database=database, search=search, hidden_states=hidden_states, survivors=survivors)


def generation_tokens(search: SearchConfig) -> tuple[int, int]:
    """Tokens of all candidates of a generation of the search: (trained on, scored on)."""
    entering = [search.offspring, *search.survivors[:-1]]
    entering[-1] += 1  # the parent joins the last step
    stages = list(zip(entering, search.stages))
    train = sum(count * stage.train_tokens for count, stage in stages)
    return train, sum(count * stage.select_tokens for count, stage in stages)


def survivors_tokens(search: SearchConfig) -> int:
    """Tokens that survivors of a generation have behind them when a step begins: trained on twice unless they are kept."""
    steps = zip(search.survivors, pairwise(search.train_tokens))
    return sum(count * behind for count, (behind, asked) in steps if behind <= asked)


def trial_memory(pruned: ModelShape, search: SearchConfig, length: int, weights: torch.dtype) -> int:
    """Bytes at the peak of the trial training of a candidate of this shape.

    Its weights and AdamW's two moments, with all activations that the backward pass needs, or, of float32 weights, with
    all gradients once the activations are gone, whichever is more; gradients of bfloat16 weights live one at a time. Not
    the survivors of the step before, which are kept only where there is room.

    Args:
        pruned: of the candidate.
        search: how it is trained.
        length: tokens of a block.
        weights: of the candidate.
    """
    tokens = search.batch_sequences * length
    value = weights.itemsize
    activations = activation_bytes(pruned, tokens, value, search.gradient_checkpointing)
    before, after = 3 * value * pruned.parameters + activations, 4 * value * pruned.parameters
    return max(before, after) if value == 4 else before


def activation_bytes(shape: ModelShape, tokens: int, value: int, checkpointing: bool) -> int:
    """Bytes of the activations that a backward pass through all layers needs.

    Args:
        shape: of the model.
        tokens: in the pass.
        value: bytes of a number.
        checkpointing: they are made again layer by layer.
    """
    per_layer = [_activations(shape, widths, tokens, value) for widths in shape.layers]
    return tokens * shape.hidden * value * len(per_layer) + max(per_layer) if checkpointing else sum(per_layer)


def _activations(shape: ModelShape, widths: LayerWidths, tokens: int, value: int) -> int:
    """Bytes of one layer's activations that its backward pass needs."""
    attention = 4 * widths.heads * shape.head_dim + 6 * shape.hidden if widths.heads else 0
    mlp = 4 * widths.intermediate + 4 * shape.hidden if widths.intermediate else 0
    return tokens * (attention + mlp) * value
