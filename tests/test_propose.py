"""Allocations against all answers that there are, and estimates against what is known of a landscape."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from darwinlm.genome import Genome
from darwinlm.search.propose import FORBIDDEN, NOISE, Estimate, allocate, diverse, proposals
from darwinlm.target.budget import Budget, Limit, level_budget, uniform
from test_budget import assert_full, budgets
from test_genome import space_of

SEEDS = st.integers(0, 2**32)


def every(budget: Budget) -> list[Genome]:
    """All open genomes within every limit."""
    ranges = (range(low, top + 1) for low, top in zip(budget.lowest, budget.tops()))
    return [genome for genome in itertools.product(*ranges) if budget.within(genome)]


def total(costs: list[list[float]], genome: Genome) -> float:
    return sum(row[level] for row, level in zip(costs, genome))


def random_costs(budget: Budget, rng: random.Random, falling: bool = True) -> list[list[float]]:
    """Of every level; falling toward dense, or in any order."""
    rows = ([rng.gauss(0, 1) for _ in range(top + 1)] for top in budget.tops())
    return [sorted(row) if falling else row for row in rows]


@given(budgets())
@settings(max_examples=150)
def test_no_genome_within_all_limits_is_cheaper(place) -> None:
    _, budget, rng = place
    assume(math.prod(top + 1 for top in budget.tops()) < 5000)
    costs = random_costs(budget, rng)
    found = allocate(costs, budget)
    assert found is not None
    assert total(costs, found) == pytest.approx(min(total(costs, genome) for genome in every(budget)), abs=1e-9)


@given(budgets())
@settings(max_examples=150)
def test_what_it_gives_is_full_whatever_the_costs(place) -> None:
    space, budget, rng = place
    costs = random_costs(budget, rng, falling=False)
    found = allocate(costs, budget)
    assert found is not None
    assert_full(space, budget, found)


@given(SEEDS, st.integers(0, 4))
@settings(max_examples=60)
def test_few_modules_change_where_few_may(seed: int, changes: int) -> None:
    rng, space = random.Random(seed), space_of(attention=[3] * 2, mlp=[2] * 3)
    budget = level_budget(space, 0.5)
    at = uniform(budget, rng)
    costs = random_costs(budget, rng)

    def changed(genome: Genome) -> int:
        return sum(a != b for a, b in zip(at, genome))

    found = allocate(costs, budget, at, changes)
    allowed = [total(costs, genome) for genome in every(budget) if changed(genome) <= changes]
    assert found is not None
    assert changed(found) <= changes
    assert total(costs, found) == pytest.approx(min(allowed), abs=1e-9)


@given(SEEDS)
@settings(max_examples=40)
def test_the_best_elsewhere_is_the_best_of_all_that_move_two_modules(seed: int) -> None:
    rng, space = random.Random(seed), space_of(attention=[3] * 2, mlp=[2] * 3)
    budget = level_budget(space, 0.5)
    at, costs = uniform(budget, rng), random_costs(budget, rng)
    found = allocate(costs, budget, at, elsewhere=True)
    assert found is not None
    far = [genome for genome in every(budget) if sum(a != b for a, b in zip(at, genome)) >= 2]
    best = min(total(costs, genome) for genome in far)
    assert total(costs, found) <= best + 1e-9  # what is left over is used, which may lead back
    assert found not in far or total(costs, found) == pytest.approx(best, abs=1e-9)


def test_something_is_proposed_where_costs_see_nothing_better() -> None:
    space = space_of(attention=[4] * 4, mlp=[4] * 4)
    costs = [[9.0, 1.0 + place, 0.0, 2.0 + 2 * place, FORBIDDEN] for place in range(8)]
    budget, at = level_budget(space, 0.5), (2,) * 8
    assert allocate(costs, budget) == at
    assert proposals(Estimate(at, 1.0, costs, costs), budget) == [(3, 2, 1, *at[3:])]


def test_forbidden_levels_are_not_taken_and_may_leave_nothing() -> None:
    space = space_of(attention=[2] * 2, mlp=[])
    budget = level_budget(space, 0.5)
    assert allocate([[0.0, 9.0, FORBIDDEN], [0.0, 9.0, 0.0]], budget) == (0, 2)
    assert allocate([[0.0, FORBIDDEN, FORBIDDEN], [0.0, 9.0, FORBIDDEN]], budget) is None


def test_a_limit_is_kept_to_the_last_unit_whatever_its_size() -> None:
    """Sums in picoseconds and parameters are far beyond the tolerance of a solver."""
    rng = random.Random(3)
    costs = tuple((10**12 + rng.randrange(10**9), rng.randrange(10**12), 0) for _ in range(12))
    spent = sum(row[1] for row in costs)
    for most in (spent - 1, spent, spent + 1):
        budget = Budget((Limit("picoseconds", most, 0, costs),), (0,) * 12)
        found = allocate([[2.0, 1.0, 1.5]] * 12, budget)
        assert found is not None
        assert budget.is_full(found)
        assert (found == (1,) * 12) == (most >= spent) or most > spent


def regression(estimate: Estimate, scores: dict[Genome, float], places: list[tuple[int, int]]) -> np.ndarray:
    """The posterior mean of the costs in these places, by normal equations in weight space (Bishop 2006, eq. 3.50)."""
    design = np.array([[float(g[m] == level) for m, level in places] for g in scores])
    prior = np.array([estimate.costs[m][level] for m, level in places])
    precision = np.diag([1 / max(estimate.doubts[m][level], 1e-9) ** 2 for m, level in places])
    noise = (NOISE * max(estimate.kl, *scores.values())) ** 2
    missing = np.array(list(scores.values())) - estimate.kl - design @ prior
    return prior + np.linalg.solve(precision + design.T @ design / noise, design.T @ missing / noise)


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=40)
def test_scores_correct_costs_as_bayesian_regression_does(seed: int, count: int) -> None:
    rng, space = random.Random(seed), space_of(attention=[3] * 2, mlp=[3] * 2)
    costs = [[0.0 if level == 1 else rng.gauss(0, 0.1) for level in range(4)] for _ in space.ladders]
    doubts = [[0.0 if level == 1 else rng.uniform(0.01, 0.1) for level in range(4)] for _ in space.ladders]
    estimate = Estimate((1,) * 4, 0.3, costs, doubts)
    scores = {tuple(rng.randrange(4) for _ in range(4)): rng.uniform(0.1, 1) for _ in range(count)}
    scores.pop(estimate.genome, None)
    places = [(m, level) for m in range(4) for level in range(4) if level != 1]
    found = estimate.corrected(scores)
    if scores:
        wanted = regression(estimate, scores, places)
        np.testing.assert_allclose([found.costs[m][level] for m, level in places], wanted, atol=1e-6)
    assert all(row[1] == 0 for row in found.costs)


@given(budgets())
@settings(max_examples=60)
def test_proposals_are_new_full_and_different(place) -> None:
    space, budget, rng = place
    at = uniform(budget, rng)
    costs = [
        [0.0 if level == now else rng.gauss(0, 1) for level in range(l.top + 1)] for l, now in zip(space.ladders, at)
    ]
    found = proposals(Estimate(at, 1.0, costs, costs), budget)
    assert at not in found
    assert len(set(found)) == len(found)
    for genome in found:
        assert_full(space, budget, genome)


def test_absence_is_proposed_once_and_never_taken_for_granted() -> None:
    space = space_of(attention=[2] * 4, mlp=[2] * 4)
    budget, at = level_budget(space, 0.5), (1,) * 8
    costs = [[-1.0, 0.0, -5.0]] * 4 + [[-1.0, 0.0, 0.5]] * 4
    found = proposals(Estimate(at, 1.0, costs, costs), budget)
    assert [genome for genome in found if 2 in genome[:4]] == [found[0]]


@given(SEEDS)
@settings(max_examples=20)
def test_diverse_allocations_are_full_and_of_their_kind(seed: int) -> None:
    space, rng = space_of(attention=[4] * 4, mlp=[4] * 4), random.Random(seed)
    costs = [sorted([0.0, *(rng.random() for _ in range(4))]) for _ in space.ladders]
    limit = Limit("parameters", 33, 0, tuple(tuple(2 * (4 - level) for level in range(5)) for _ in space.ladders))
    budget = Budget((limit,), (0,) * 8)
    found = diverse(costs, budget, space.ladders)
    assert len(set(found.values())) == len(found) > 4
    for genome in found.values():
        assert_full(space, budget, genome)

    def gone(name: str) -> int:
        return sum(level for level, ladder in zip(found[name], space.ladders) if ladder.kind == "attention")

    steps = [gone(name) for factor in ("1/4", "1/2", "2", "4") if (name := f"attention x {factor}") in found]
    assert steps == sorted(steps, reverse=True)
    whole = found.get("whole MLPs", budget.lowest)
    partial = [level for level, ladder in zip(whole, space.ladders) if ladder.kind == "mlp" and level % 4]
    assert len(partial) <= 1  # what the repair used of the room that was left


def test_whole_modules_stay_as_they_are_where_levels_are_closed() -> None:
    space = space_of(attention=[4] * 4, mlp=[4] * 4)
    limit = Limit("parameters", 18, 0, tuple(tuple(2 * (4 - level) for level in range(5)) for _ in space.ladders))
    budget, costs = Budget((limit,), (2,) * 8), [[0.0, 0.1, 0.2, 0.3, 1.0]] * 8
    whole = [
        level
        for level, ladder in zip(diverse(costs, budget, space.ladders)["whole MLPs"], space.ladders)
        if ladder.kind == "mlp"
    ]
    assert whole.count(2) >= 2
    assert sum(level == 3 for level in whole) <= 1
