"""The measured start under a budget on known landscapes, and ZipLM's allocation against all answers that there are."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darwinlm.genome import Genome, Space
from darwinlm.search.layerwise import least_error
from darwinlm.search.start_within import measured_start_within
from darwinlm.target.budget import Budget, Limit, uniform_within
from test_budget import assert_full, budgets
from test_genome import space_of
from test_start import Landscape, Score, convex


def begin(space: Space, budget: Budget, start: Genome, score: Score, rounds: int = 50) -> Genome:
    landscape = Landscape(space, score)
    found = measured_start_within([start], budget, space, landscape.as_screens(), rounds)
    assert all(level >= low for genome in landscape.asked for level, low in zip(genome, budget.lowest))
    for genome in landscape.referred:
        assert_full(space, budget, genome)
    kls = list(map(score, landscape.referred))
    assert kls == sorted(set(kls), reverse=True)  # each better than the one before
    assert landscape.referred[-1] == found
    return found


@given(budgets(), st.integers(0, 5))
@settings(max_examples=200)
def test_it_is_never_worse_keeps_every_limit_and_ends(place, rounds: int) -> None:
    space, budget, rng = place
    start = uniform_within(budget, space, rng)
    form = [[rng.gauss(0, 1) for _ in start] for _ in start]

    def score(genome: Genome) -> float:
        return 1e3 + sum(form[i][j] * genome[i] * genome[j] for i in range(len(start)) for j in range(len(start)))

    assert score(begin(space, budget, start, score, rounds)) <= score(start)


def test_where_steps_add_up_it_ends_near_the_optimum() -> None:
    """Attention and MLPs of different prices; the optimum by trying all genomes."""
    space, rng = space_of(attention=[3] * 3, mlp=[4] * 3), random.Random(4)
    costs = tuple(tuple((90 if l.kind == "mlp" else 40) * (l.top - n) for n in range(l.top + 1)) for l in space.ladders)
    budget = Budget((Limit("parameters", 800, 0, costs),), (0,) * 6)
    score, tables = convex(rng, space)
    start = uniform_within(budget, space, rng)
    every = itertools.product(*(range(ladder.top + 1) for ladder in space.ladders))
    best = min(score(genome) for genome in every if budget.within(genome))
    found = score(begin(space, budget, start, score))
    assert found - best < 0.15 * (score(start) - best)
    assert tables


def test_nothing_better_is_no_change() -> None:
    space = space_of(attention=[4] * 3, mlp=[4] * 3)
    costs = tuple(tuple(10 * (4 - level) for level in range(5)) for _ in space.ladders)
    budget, start = Budget((Limit("parameters", 120, 0, costs),), (0,) * 6), (2,) * 6
    assert begin(space, budget, start, lambda genome: 1.0) == start


@pytest.mark.parametrize("limits", [1, 2])
@given(st.integers(0, 2**32))
def test_ziplm_within_limits(limits: int, seed: int) -> None:
    rng = random.Random(seed)
    space = space_of(attention=[rng.randint(1, 3)] * 2, mlp=[rng.randint(1, 3)] * 2)
    errors = [[0.0, *sorted(rng.random() for _ in range(l.top - 1)), 1.0] for l in space.ladders]
    made = []
    for place in range(limits):
        costs = tuple(
            tuple(sorted((rng.randint(1, 50) for _ in range(l.top)), reverse=True)) + (0,) for l in space.ladders
        )
        made.append(Limit(f"{place}", rng.randint(0, sum(row[0] for row in costs)), 0, costs))
    budget = Budget(tuple(made), (0,) * 4)
    found = least_error(errors, budget)
    assert budget.within(found)

    def error(genome: Genome) -> float:
        return sum(row[level] for row, level in zip(errors, genome))

    every = itertools.product(*(range(ladder.top + 1) for ladder in space.ladders))
    best = min(error(genome) for genome in every if budget.within(genome))
    assert error(found) == pytest.approx(best) if limits == 1 else error(found) >= best - 1e-9


@pytest.mark.parametrize("order", [1, -1])
def test_the_better_of_several_starts_is_refined(order: int) -> None:
    space = space_of(attention=[3] * 2, mlp=[3] * 2)
    costs = tuple(tuple(10 * (l.top - n) for n in range(l.top + 1)) for l in space.ladders)
    budget = Budget((Limit("parameters", 60, 0, costs),), (0,) * 4)
    starts = [(0, 2, 2, 2), (2, 1, 2, 1)][::order]
    goal = (2, 1, 1, 2)

    def score(genome: Genome) -> float:
        return sum(abs(a - b) for a, b in zip(genome, goal))

    landscape = Landscape(space, score)
    measured_start_within(starts, budget, space, landscape.as_screens(), 0)
    assert landscape.referred[:2] == starts
    assert landscape.referred[-1] == (2, 1, 2, 1)
    assert measured_start_within(starts, budget, space, landscape.as_screens(), 0) == (2, 1, 2, 1)
