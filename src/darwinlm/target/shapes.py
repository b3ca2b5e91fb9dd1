"""The widths that modules can have at their levels: what a latency table must hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.database.levels import Ladder
from darwinlm.errors import RequestError
from darwinlm.models.attention import lay_out
from darwinlm.models.shape import ModelShape

Heads = tuple[int, int]
"""Query heads and KV heads; (0, 0) where attention is absent."""


@dataclass(frozen=True)
class Shapes:
    """What the modules of a model may become."""

    attention: list[Heads]
    """Widest first."""
    mlp: list[int]

    @property
    def middle(self) -> tuple[Heads, int]:
        """The middle width of each kind."""
        return self.attention[len(self.attention) // 2], self.mlp[len(self.mlp) // 2]


def possible_shapes(shape: ModelShape, rungs: Sequence[Ladder]) -> Shapes:
    """Every width that a module can have at some level, whatever heads leave."""
    if shape.original.experts:
        raise RequestError(
            "A target speed-up needs a latency table, which DarwinLM does not measure for experts. Ask for parameters or memory."
        )
    heads: set[Heads] = set()
    columns: set[int] = set()
    for ladder in rungs:
        widths = shape.layers[ladder.layer]
        for removed in ladder.open_counts[:-1]:  # none of a module that is gone
            kept = ladder.columns - removed * ladder.group_size
            if ladder.kind == "mlp":
                columns.add(kept)
            else:
                heads |= _layouts(ladder, kept // shape.head_dim, widths.heads, widths.kv_heads, shape.head_dim)
    return Shapes(sorted(heads, reverse=True), sorted(columns, reverse=True))


def _layouts(ladder: Ladder, kept: int, heads: int, kv_heads: int, head_dim: int) -> set[Heads]:
    """Layouts of `kept` query heads: of whole groups, of as many in every group, or of any."""
    group = heads // kv_heads
    if ladder.group_size == head_dim * group:
        return {(kept, kept // group)}
    if ladder.rounds:
        return {(kept, kv_heads)}
    found: set[Heads] = set()
    for counts in itertools.combinations_with_replacement(range(group + 1), kv_heads):
        if sum(counts) == kept:
            members = [key * group + place for key, count in enumerate(counts) for place in range(count)]
            layout = lay_out(members, heads, kv_heads)
            found.add((layout.heads, layout.kv_heads))
    return found
