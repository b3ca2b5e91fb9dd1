"""The measured start on known landscapes: the optimum where steps add up, and never worse where they do not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.genome import Genome, Space, is_valid, uniform_genome
from darwinlm.search.refinement import Screens
from darwinlm.search.screen import Screen
from darwinlm.search.start import measured_start
from test_genome import space_of

Score = Callable[[Genome], float]


class Landscape:
    """Scores like a screen; every genome that it is asked for must be one."""

    def __init__(self, space: Space, score: Score) -> None:
        self.space, self.score = space, score
        self.referred: list[Genome] = []
        self.asked: list[Genome] = []

    def refer(self, genome: Genome) -> float:
        self.referred.append(genome)
        return self(genome)

    def __call__(self, genome: Genome) -> float:
        assert is_valid(self.space, genome)
        self.asked.append(genome)
        return self.score(genome)

    def as_screens(self, coarse: Score | None = None) -> Screens:
        """This landscape, and for the first round one like it or another one."""
        first = Landscape(self.space, coarse or self.score)
        return Screens(fine=cast(Screen, self), coarse=cast(Screen, first))


def begin(
    space: Space, start: Genome, score: Score, rounds: int = 10_000, coarse: Score | None = None
) -> tuple[Genome, Landscape]:
    landscape = Landscape(space, score)
    found = measured_start(start, space, landscape.as_screens(coarse), rounds)
    assert is_valid(space, found)
    assert space.totals(found) == space.totals(start)
    assert landscape.referred[0] == start
    assert landscape.referred[-1] == found
    return found, landscape


def convex(rng: random.Random, space: Space) -> tuple[Score, list[list[float]]]:
    """A sum over modules of convex costs, and the costs."""
    tables: list[list[float]] = []
    for ladder in space.ladders:
        slopes = sorted(rng.uniform(-5, 5) for _ in range(ladder.top))
        tables.append(list(itertools.accumulate(slopes, initial=rng.uniform(0, 9))))
    return lambda genome: sum(table[level] for table, level in zip(tables, genome, strict=True)), tables


def cheapest(space: Space, start: Genome, tables: list[list[float]]) -> float:
    """The least sum of costs with the kinds' totals of the start, by counting all allocations up, module by module."""
    total = 0.0
    for kind, budget in space.totals(start).items():
        best = {0: 0.0}
        for module in space.members(kind):
            sums = [(used + level, cost + c) for used, cost in best.items() for level, c in enumerate(tables[module])]
            best = {used: min(cost for other, cost in sums if other == used) for used, _ in sums}
        total += best[budget]
    return total


TOPS = st.lists(st.integers(1, 7), max_size=8)
SPACES = st.builds(space_of, TOPS, TOPS).filter(lambda space: space.ladders)


@given(SPACES, st.floats(0, 1), st.integers(0, 2**32))
def test_where_steps_add_up_the_optimum_under_the_target_is_found(space: Space, share: float, seed: int) -> None:
    rng = random.Random(seed)
    start = uniform_genome(space, share, rng)
    score, tables = convex(rng, space)
    found, _ = begin(space, start, score)
    assert score(found) == pytest.approx(cheapest(space, start, tables), abs=1e-9)


def test_a_deep_model_is_allocated_in_few_rounds() -> None:
    """60 modules whose best levels lie up to 4 steps away: more rounds than steps would be steps one by one."""
    space = space_of(attention=[8] * 30, mlp=[8] * 30)
    best = tuple((0, 2, 4, 6, 8)[i // 2 % 5] for i in range(60))
    start = (4,) * 60
    found, landscape = begin(space, start, lambda g: sum((a - b) ** 2 for a, b in zip(g, best, strict=True)), rounds=8)
    assert found == best
    assert len(landscape.referred) <= 6  # the start and each round's winner


@given(SPACES, st.floats(0, 1), st.integers(0, 2**32), st.integers(0, 5))
def test_where_modules_interact_it_is_never_worse_and_ends(space: Space, share: float, seed: int, rounds: int) -> None:
    """A random quadratic form in levels, which need not be convex; the result is the best of all that it stood on.

    However little the first round's coarse scores have to do with it.
    """
    rng = random.Random(seed)
    count = len(space.ladders)
    form = [[rng.gauss(0, 1) for _ in range(count)] for _ in range(count)]

    def score(genome: Genome) -> float:
        return sum(form[i][j] * genome[i] * genome[j] for i in range(count) for j in range(count))

    start = uniform_genome(space, share, rng)
    for most, coarse in ((rounds, None), (10_000, None), (rounds, lambda genome: rng.random())):
        found, landscape = begin(space, start, score, most, coarse)
        scores = list(map(score, landscape.referred))
        assert scores == sorted(set(scores), reverse=True)  # each better than the one before
        assert len(landscape.referred) <= 1 + most
        assert score(found) <= score(start)


@given(SPACES, st.floats(0, 1), st.integers(0, 2**32))
def test_on_a_landscape_without_any_order_it_ends_too(space: Space, share: float, seed: int) -> None:
    start = uniform_genome(space, share, random.Random(seed))
    values: dict[Genome, float] = {}
    rng = random.Random(seed + 1)
    found, _ = begin(space, start, lambda genome: values.setdefault(genome, rng.random()))
    assert values[found] <= values[start]


def test_nothing_better_is_no_change() -> None:
    space, start = space_of(attention=[4] * 3, mlp=[4] * 3), (2,) * 6
    assert begin(space, start, lambda genome: 1.0)[0] == start  # a tie is not better
    found, landscape = begin(space, start, lambda genome: float(genome != start))
    assert found == start
    assert landscape.referred == [start]


def test_no_rounds_measure_the_start_alone() -> None:
    space, start = space_of(attention=[4] * 3, mlp=[4] * 3), (2,) * 6
    found, landscape = begin(space, start, lambda genome: float(sum(genome[:3])), rounds=0)
    assert (found, landscape.asked) == (start, [start])


@pytest.mark.parametrize(("space", "start"), [(space_of(attention=[4], mlp=[4]), (2, 2)), (Space(()), ())])
def test_a_space_in_which_nothing_can_move(space: Space, start: Genome) -> None:
    assert begin(space, start, lambda genome: float(sum(genome)))[0] == start
