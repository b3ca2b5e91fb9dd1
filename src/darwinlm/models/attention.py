"""How query heads map to slices of q, k, v and o, for every attention unit and every leftover.

Letters: Q = query heads, N = key-value (KV) heads, g = Q // N query heads of one KV head, D = head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class AttentionLayout:
    """A regular grouped-query attention that computes exactly what some kept query heads compute.

    `queries[i]` is the old query head in place i, or None for a padding head whose rows and columns are zero.
    `keys[j]` is the old KV head in place j. Query place i reads KV place i // (len(queries) // len(keys)).
    """

    queries: tuple[int | None, ...]
    keys: tuple[int, ...]

    @property
    def heads(self) -> int:
        """Query heads, padding included."""
        return len(self.queries)

    @property
    def kv_heads(self) -> int:
        """KV heads, duplicates included."""
        return len(self.keys)

    @property
    def padding(self) -> int:
        """Query heads that are padding."""
        return self.queries.count(None)


def lay_out(kept: Sequence[int], heads: int, kv_heads: int) -> AttentionLayout:
    """The smallest regular layout of `kept` query heads (ascending, of `heads`, with `kv_heads` KV heads).

    KV heads without a query head left are dropped. Where the rest keep unequal numbers c_j of query heads, KV head
    j is repeated ceil(c_j / g) times and queries are padded to multiples of g, for the g of the fewest heads in all.
    """
    if not kept:
        return AttentionLayout((), ())
    group = heads // kv_heads
    members: dict[int, list[int]] = {}
    for head in kept:
        members.setdefault(head // group, []).append(head)

    def size(g: int) -> tuple[int, int]:
        copies = sum(ceil(len(own) / g) for own in members.values())
        return copies * (g + 1), copies

    best = min(range(1, group + 1), key=size)
    queries: list[int | None] = []
    keys: list[int] = []
    for key, own in members.items():
        copies = ceil(len(own) / best)
        queries += own + [None] * (copies * best - len(own))
        keys += [key] * copies
    return AttentionLayout(tuple(queries), tuple(keys))


def heads_of_columns(columns: Sequence[int], head_dim: int) -> list[int]:
    """Query heads whose columns of the output matrix are kept; columns come whole heads at a time."""
    return [columns[i] // head_dim for i in range(0, len(columns), head_dim)]
