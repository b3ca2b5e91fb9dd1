"""Any set of kept query heads as a regular grouped-query attention: exact, and the smallest there is."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.models.attention import AttentionLayout, heads_of_columns, lay_out


@st.composite
def kept_heads(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Some heads of an attention with their number of query and KV heads."""
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    heads = kv_heads * group
    return sorted(draw(st.sets(st.integers(0, heads - 1)))), heads, kv_heads


def smallest_total(counts: list[int]) -> int:
    """Fewest query and KV heads of a regular attention, over every number of copies of every KV head."""
    totals = []
    for copies in itertools.product(*(range(1, count + 1) for count in counts)):
        ratio = max(-(-count // n) for count, n in zip(counts, copies))
        totals.append(sum(copies) * (ratio + 1))
    return min(totals)


@given(kept_heads())
def test_every_kept_head_is_there_once_and_reads_its_own_keys(case: tuple[list[int], int, int]) -> None:
    kept, heads, kv_heads = case
    layout = lay_out(kept, heads, kv_heads)
    assert [head for head in layout.queries if head is not None] == kept
    if kept:
        assert layout.heads % layout.kv_heads == 0
        ratio = layout.heads // layout.kv_heads
        for place, head in enumerate(layout.queries):
            assert head is None or layout.keys[place // ratio] == head // (heads // kv_heads)


@given(kept_heads())
def test_no_regular_layout_is_smaller(case: tuple[list[int], int, int]) -> None:
    kept, heads, kv_heads = case
    counts = list(Counter(head // (heads // kv_heads) for head in kept).values())
    layout = lay_out(kept, heads, kv_heads)
    assert layout.heads + layout.kv_heads == (smallest_total(counts) if counts else 0)


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_even_counts_need_no_padding_and_no_copies(kv_heads: int, group: int, data: st.DataObject) -> None:
    each = data.draw(st.integers(1, group))
    keys = sorted(data.draw(st.sets(st.integers(0, kv_heads - 1), min_size=1)))
    own = st.sets(st.integers(0, group - 1), min_size=each, max_size=each)
    kept = [key * group + head for key in keys for head in sorted(data.draw(own))]
    assert lay_out(kept, kv_heads * group, kv_heads) == AttentionLayout(tuple(kept), tuple(keys))


@pytest.mark.parametrize(
    ("kept", "heads", "kv_heads", "queries", "keys"),
    [
        ([], 8, 2, (), ()),
        (range(8), 8, 2, tuple(range(8)), (0, 1)),
        ([1, 3], 4, 4, (1, 3), (1, 3)),
        ([0, 1, 2, 4], 8, 2, (0, 1, 2, 4, None, None), (0, 1)),
        ([0, 1, 2, 3, 4], 8, 2, (0, 1, 2, 3, 4, None), (0, 0, 1)),
        ([5], 8, 2, (5,), (1,)),
    ],
)
def test_known_layouts(kept, heads: int, kv_heads: int, queries: tuple, keys: tuple) -> None:
    layout = lay_out(list(kept), heads, kv_heads)
    assert (layout.queries, layout.keys) == (queries, keys)


def test_heads_of_columns() -> None:
    assert heads_of_columns([4, 5, 6, 7, 12, 13, 14, 15], head_dim=4) == [1, 3]
    assert heads_of_columns([], head_dim=4) == []
