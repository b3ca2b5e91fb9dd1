"""The dynamic programme against brute force over every allocation."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from darwinlm.search.allocation import FORBIDDEN, allocate

COSTS = st.lists(st.lists(st.sampled_from([FORBIDDEN, *range(-4, 9)]), min_size=1, max_size=4), min_size=1, max_size=5)


@given(COSTS, st.integers(0, 12), st.none() | st.integers(0, 5))
def test_no_allocation_is_cheaper(costs: list[list[float]], budget: int, changes: int | None) -> None:
    def total(levels: tuple[int, ...]) -> float:
        return sum(row[level] for row, level in zip(costs, levels))

    allowed = [
        levels
        for levels in itertools.product(*(range(len(row)) for row in costs))
        if sum(levels) == budget
        and total(levels) < FORBIDDEN
        and (changes is None or sum(row[level] != 0 for row, level in zip(costs, levels)) <= changes)
    ]
    found = allocate(costs, budget, changes)
    if not allowed:
        assert found is None
    else:
        assert found in allowed
        assert total(found) == min(map(total, allowed))
