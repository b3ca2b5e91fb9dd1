"""Draws of tokens: as many as asked, none twice, and parts that are the same whatever follows them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.search.samples import batches, draw, draw_parts

SEEDS = st.integers(0, 2**32)


@given(st.integers(1, 8), st.integers(2, 7), st.data(), SEEDS)
def test_a_draw_has_the_tokens_asked_and_no_block_twice(blocks, length, data, seed):
    tokens = data.draw(st.integers(0, blocks * length))
    drawn = draw(torch.zeros(blocks, length), tokens, seed, "test", 0, 0)
    assert sum(count for _, count in drawn) == tokens - (tokens % length == 1)  # a single token has no next one
    assert len({block for block, _ in drawn}) == len(drawn)
    assert all(0 <= block < blocks and 2 <= count <= length for block, count in drawn)
    assert [pair for joined, count in batches(drawn, 3) for pair in ((block, count) for block in joined)] == drawn


@given(st.integers(1, 8), st.integers(2, 7), st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True), SEEDS)
def test_parts_are_one_sequence(blocks, length, ends, seed):
    ends = sorted(ends)
    pool = torch.zeros(blocks, length)
    parts = draw_parts(pool, ends, seed, "test", 0)
    for begin, end, part in zip((0, *ends), ends, parts, strict=False):
        assert sum(count for _, count in part) == end - begin - ((end - begin) % length == 1)
    joined = [block for part in parts for block, _ in part]
    for first in range(0, len(joined), blocks):  # nothing comes again before everything has come
        turn = joined[first : first + blocks]
        assert len(set(turn)) == len(turn)
    for known in range(1, len(ends)):
        assert draw_parts(pool, ends[:known], seed, "test", 0) == parts[:known]


def test_other_generations_and_purposes_draw_other_blocks():
    pool = torch.zeros(64, 4)
    drawn = [draw_parts(pool, [64], 0, purpose, generation) for purpose in ("a", "b") for generation in (0, 1)]
    assert len({str(each) for each in drawn}) == 4
