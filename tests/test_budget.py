"""Budgets: every genome that comes out of them keeps every limit, is needlessly small nowhere, and nothing hangs."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darwinlm.genome import Genome, Space, is_valid
from darwinlm.search.mutation import ATTEMPTS, offspring
from darwinlm.target.budget import Budget, Limit, uniform
from test_genome import space_of

SEEDS = st.integers(0, 2**32)
TOPS = st.lists(st.integers(1, 6), max_size=5)
SPACES = st.builds(space_of, TOPS, TOPS).filter(lambda space: space.ladders)
THOUSANDS = settings(max_examples=1000)


def costs_of(space: Space, rng: random.Random, monotone: bool) -> tuple[tuple[int, ...], ...]:
    """Random prices, 0 when gone; steps of very different sizes, and not always downward."""
    rows = []
    for ladder in space.ladders:
        scale = rng.choice((3, 50, 1000))
        row = [rng.randrange(scale) for _ in range(ladder.top)]
        rows.append((*(sorted(row, reverse=True) if monotone else row), 0))
    return tuple(rows)


@st.composite
def budgets(draw: st.DrawFn) -> tuple[Space, Budget, random.Random]:
    """A space, one to three limits that some genome keeps, and levels that are closed."""
    space, rng = draw(SPACES), random.Random(draw(SEEDS))
    limits = []
    for place in range(draw(st.integers(1, 3))):
        costs, base = costs_of(space, rng, draw(st.booleans())), rng.choice((0, 17))
        limits.append(Limit(f"limit {place}", base + rng.randint(0, sum(map(max, costs))), base, costs))
    closed = draw(st.booleans())
    lowest = tuple(rng.randint(0, ladder.top) if closed else 0 for ladder in space.ladders)
    return space, Budget(tuple(limits), lowest), rng


def naive_spent(limit: Limit, genome: Genome) -> int:
    total = limit.base
    for module in range(len(genome)):
        total += limit.costs[module][genome[module]]
    return total


def naive_within(budget: Budget, genome: Genome) -> bool:
    return all(naive_spent(limit, genome) <= limit.most for limit in budget.limits)


def assert_full(space: Space, budget: Budget, genome: Genome) -> None:
    """By trying every single step toward dense."""
    assert is_valid(space, genome)
    assert all(level >= low for level, low in zip(genome, budget.lowest, strict=True))
    assert naive_within(budget, genome)
    for module, level in enumerate(genome):
        if level > budget.lowest[module]:
            assert not naive_within(budget, (*genome[:module], level - 1, *genome[module + 1 :]))


def any_genome(space: Space, budget: Budget, rng: random.Random) -> Genome:
    return tuple(rng.randint(low, ladder.top) for low, ladder in zip(budget.lowest, space.ladders, strict=True))


@given(budgets())
@THOUSANDS
def test_repair_brings_any_genome_within_and_up_to_every_limit(place) -> None:
    space, budget, rng = place
    genome = any_genome(space, budget, rng)
    repaired = budget.repair(genome, rng.choice, tuple(rng.sample(range(len(genome)), rng.randint(0, len(genome)))))
    assert_full(space, budget, repaired)
    assert budget.is_full(repaired)
    assert budget.repair(repaired, rng.choice) == repaired
    assert budget.headroom(genome) == tuple(limit.most - naive_spent(limit, genome) for limit in budget.limits)


@given(budgets(), st.integers(1, 8), st.integers(1, 4))
@THOUSANDS
def test_every_child_keeps_every_limit_and_is_new(place, count: int, switches: int) -> None:
    space, budget, rng = place
    parent = budget.repair(any_genome(space, budget, rng), rng.choice)
    children = offspring(parent, count, budget, switches, rng)
    assert len({parent, *children}) == len(children) + 1
    assert len(children) <= count
    for child in children:
        assert_full(space, budget, child)


@given(budgets())
@THOUSANDS
def test_the_uniform_start_keeps_every_limit(place) -> None:
    space, budget, rng = place
    assert_full(space, budget, uniform(budget, rng))


def test_the_uniform_start_is_uniform() -> None:
    space = space_of(attention=[8] * 6, mlp=[10] * 6)
    costs = tuple(tuple(100 * (l.top - level) for level in range(l.top + 1)) for l in space.ladders)
    budget = Budget((Limit("steps", 50 * (8 + 10) * 6, 0, costs),), (0,) * 12)
    genome = uniform(budget, random.Random(0))
    assert genome == tuple(l.top // 2 for l in space.ladders)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=2), st.lists(st.integers(1, 3), max_size=2), SEEDS)
@settings(max_examples=300)
def test_where_few_genomes_are_full_those_near_are_found_and_it_ends(attention, mlp, seed) -> None:
    """All full genomes by trying all: children are among them, and where there are others, some child mostly is found."""
    space, rng = space_of(attention=attention, mlp=mlp), random.Random(seed)
    costs = costs_of(space, rng, monotone=True)
    budget = Budget((Limit("one", rng.randint(0, sum(map(max, costs))), 0, costs),), (0,) * len(space.ladders))
    every = itertools.product(*(range(ladder.top + 1) for ladder in space.ladders))
    full = {genome for genome in every if budget.is_full(genome)}
    parent = rng.choice(sorted(full))
    children = offspring(parent, 50, budget, 3, rng)
    assert set(children) <= full - {parent}


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(2, 4), SEEDS)
def test_rungs_that_cost_more_than_there_is_are_never_taken(tops, formats, seed) -> None:
    """Formats alone: no module may lose width."""
    rng, rows = random.Random(seed), []
    for top in tops:
        row = sorted((rng.randrange(1, 100) for _ in range(formats)), reverse=True)
        rows.append((*row, *[10_000] * (top * formats + 1 - formats)))
    most = sum(row[formats - 1] for row in rows) + rng.randrange(100)
    budget = Budget((Limit("bytes", most, 0, tuple(rows)),), (0,) * len(rows), formats=formats)
    parent = budget.repair((0,) * len(rows), rng.choice)
    for genome in (parent, *offspring(parent, 8, budget, 3, rng)):
        assert budget.is_full(genome)
        assert max(genome) < formats


def test_a_switch_may_be_between_attention_and_mlp() -> None:
    space = space_of(attention=[4] * 3, mlp=[4] * 3)
    costs = tuple(tuple((30 if l.kind == "mlp" else 10) * (4 - level) for level in range(5)) for l in space.ladders)
    budget = Budget((Limit("parameters", 240, 0, costs),), (0,) * 6)
    parent: Genome = (2,) * 6
    children = offspring(parent, 64, budget, 1, random.Random(0))
    assert len(children) > 30
    totals = {tuple(space.totals(child).values()) for child in children}
    assert len(totals) > 1  # the kinds exchange
    assert all(
        naive_spent(budget.limits[0], child) == 240 for child in children
    )  # steps of 10 and 30: always to the brim


def test_uneven_tables_conserve_the_quantity_and_not_the_index() -> None:
    budget = Budget((Limit("parameters", 100, 0, ((90, 80, 20, 0), (90, 80, 20, 0))),), (0, 0))
    assert budget.is_full((1, 2))
    children = offspring((1, 2), 10, budget, 2, random.Random(1))
    assert set(children) == {(2, 1), (0, 3), (3, 0)}
    assert {sum(child) for child in children} == {3}
    uneven = Budget((Limit("parameters", 60, 0, ((60, 50, 40, 0), (60, 20, 10, 0))),), (0, 0))
    found = offspring((2, 1), 20, uneven, 3, random.Random(1))
    assert {(0, 3), (1, 2), (3, 0)} == set(found)


@pytest.mark.parametrize(("attention", "mlp"), [([5], []), ([1], []), ([5], [5]), ([], [1, 1])])
@pytest.mark.parametrize("most", [0, 1, 3, 100])
def test_where_nothing_can_move_it_ends_at_once(attention, mlp, most) -> None:
    space = space_of(attention=attention, mlp=mlp)
    costs = tuple(tuple(l.top - level for level in range(l.top + 1)) for l in space.ladders)
    budget = Budget((Limit("steps", most, 0, costs),), (0,) * len(costs))
    parent = uniform(budget, random.Random(0))
    drawn = 0

    class Counting(random.Random):
        def randint(self, low: int, high: int) -> int:
            nonlocal drawn
            drawn += 1
            return super().randint(low, high)

    children = offspring(parent, 16, budget, 3, Counting(0))
    for child in children:
        assert_full(space, budget, child)
    assert drawn <= min(2 * (len(children) + 1) * ATTEMPTS, 3200)
