"""Floating-point operations of building a database and of searching on it, from shapes; a product and a sum are two.

Matrix products are counted, nothing else: neither the latency of small operations nor reading and writing.
Letters: T = tokens, R = hidden size, C = columns of an output matrix, k = columns that a level keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from darwinlm.config import SearchConfig
from darwinlm.database.levels import Ladder
from darwinlm.models.shape import ModelShape


def forward_flops(shape: ModelShape, length: int, *, head: bool = True) -> int:
    """A forward pass, per token, in sequences of `length`: all matrices, and causal attention to half of the tokens."""
    attention = sum(2 * widths.heads * shape.head_dim * length for widths in shape.layers)
    return 2 * shape.layer_parameters + attention + (2 * shape.vocabulary * shape.hidden if head else 0)


def hessian_flops(ladders: Sequence[Ladder], tokens: int) -> int:
    """Second moments in float32: T C^2 for each module, since one triangle is enough."""
    return sum(tokens * ladder.columns**2 for ladder in ladders)


def pruning_flops(ladder: Ladder, hidden: int) -> int:
    """One module's levels in float32.

    Inverse and two factorizations (5/3 C^3), K and P while columns leave (2 C^3), W^T W and W L (2 R C^2), and one
    substitution of R k^2 for each level.
    """
    columns = ladder.columns
    kept = [columns - count * ladder.group_size for count in ladder.open_counts]
    return 11 * columns**3 // 3 + 2 * hidden * columns**2 + sum(hidden * k**2 for k in kept)


def pruning_seconds(ladders: Sequence[Ladder], hidden: int, devices: int, rate: float) -> float:
    """All modules: those of a block are shared out to the devices, the blocks come one after another."""
    blocks: dict[int, list[int]] = {}
    for ladder in ladders:
        blocks.setdefault(ladder.layer, []).append(pruning_flops(ladder, hidden))
    return sum(max(sum(own[rank::devices]) for rank in range(min(devices, len(own)))) for own in blocks.values()) / rate


def search_passes(config: SearchConfig, modules: Sequence[Ladder], devices: int) -> tuple[int, int]:
    """(tokens trained on, tokens scored on) by the busiest device in the whole search.

    Candidates of a selection step are shared out to the devices, never split; the parent joins the last step.
    """
    entering = [config.offspring, *config.survivors[:-1]]
    entering[-1] += 1
    train = sum(ceil(count / devices) * stage.train_tokens for count, stage in zip(entering, config.stages))
    select = sum(ceil(count / devices) * stage.select_tokens for count, stage in zip(entering, config.stages))
    first = sum(ladder.top - ladder.present for ladder in modules) if config.start == "measured" else 0
    return train * config.generations, select * config.generations + ceil(first / devices) * config.start_tokens
