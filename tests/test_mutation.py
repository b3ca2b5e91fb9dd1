"""Level switches: what they keep, how they are drawn, and that they end."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.genome import Genome, Space, is_valid
from darwinlm.search.mutation import level_switch, offspring
from test_genome import SPACES, space_of

SEEDS = st.integers(0, 2**32)


@st.composite
def places(draw: st.DrawFn) -> tuple[Space, Genome]:
    """A space and any genome of it, ends of the ladders included."""
    space = draw(SPACES)
    return space, tuple(draw(st.integers(0, ladder.top)) for ladder in space.ladders)


def distance(one: Genome, other: Genome) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def neighbours(space: Space, genome: Genome) -> set[Genome]:
    """All genomes one level switch away, by trying every one of the space."""
    every = itertools.product(*(range(ladder.top + 1) for ladder in space.ladders))
    return {other for other in every if distance(other, genome) == 2 and space.totals(other) == space.totals(genome)}


@given(places(), st.integers(1, 8), st.integers(1, 4), SEEDS)
def test_children_are_new_genomes_of_the_same_totals(
    place: tuple[Space, Genome], count: int, switches: int, seed: int
) -> None:
    space, parent = place
    children = offspring(parent, count, space, switches, random.Random(seed))
    assert len(children) <= count
    assert len({parent, *children}) == len(children) + 1  # no duplicates, and not the parent
    for child in children:
        assert is_valid(space, child)
        assert space.totals(child) == space.totals(parent)
        assert 2 <= distance(child, parent) <= 2 * switches


@given(places(), SEEDS)
def test_one_switch_moves_a_step_from_a_donor_to_another_module(place: tuple[Space, Genome], seed: int) -> None:
    space, parent = place
    child = level_switch(parent, space, random.Random(seed))
    moved = sorted((new - old, ladder.kind) for old, new, ladder in zip(parent, child, space.ladders) if new != old)
    assert [step for step, _ in moved] in ([], [-1, 1])
    assert len({kind for _, kind in moved}) == bool(moved)


@given(
    st.builds(space_of, *[st.lists(st.integers(1, 2), max_size=3)] * 2).filter(lambda s: s.ladders), st.data(), SEEDS
)
def test_every_neighbour_is_found_and_no_other(space: Space, data: st.DataObject, seed: int) -> None:
    parent = tuple(data.draw(st.integers(0, ladder.top)) for ladder in space.ladders)
    truth = neighbours(space, parent)
    assert set(offspring(parent, len(truth) + 5, space, 1, random.Random(seed))) == truth
    if not truth:
        assert level_switch(parent, space, random.Random(seed)) == parent


@pytest.mark.parametrize(
    ("space", "parent"),
    [
        (space_of(attention=[5], mlp=[5]), (2, 2)),  # no module has a partner of its kind
        (space_of(mlp=[5, 5, 5]), (0, 0, 0)),  # none has anything to give
        (space_of(mlp=[5, 5, 5]), (5, 5, 5)),  # none can take anything
        (Space(()), ()),
    ],
)
@pytest.mark.parametrize("switches", [1, 3])
def test_where_nothing_can_move_there_are_no_children(space: Space, parent: Genome, switches: int) -> None:
    assert offspring(parent, 16, space, switches, random.Random(0)) == []


def test_a_kind_that_cannot_move_leaves_the_draw_to_the_other() -> None:
    space = space_of(attention=[9, 9, 9, 9], mlp=[1, 1])
    children = {level_switch((0, 0, 0, 1, 0, 0), space, random.Random(seed)) for seed in range(20)}
    assert children == {(0, 1, 0, 0, 0, 0)}


def test_kinds_are_drawn_in_proportion_to_their_modules() -> None:
    space, draws = space_of(attention=[4] * 2, mlp=[4] * 6), 2000
    rng, parent = random.Random(1), (2,) * 8
    attention = sum(level_switch(parent, space, rng)[0] != 2 for _ in range(draws))  # member 0 or 2, always both
    assert abs(attention - draws / 4) < 4 * (draws * 1 / 4 * 3 / 4) ** 0.5  # 4 sigma


def test_switches_are_the_lesser_of_two_dice() -> None:
    """P(min(u1, u2) = k) for u ~ U{1, 2, 3} is 5/9, 3/9, 1/9; among 100 modules a switch rarely undoes part of another."""
    space, parent, draws = space_of(mlp=[99] * 100), (50,) * 100, 400
    lengths = [distance(child, parent) // 2 for child in offspring(parent, draws, space, 3, random.Random(2))]
    for length, share in [(1, 5 / 9), (2, 3 / 9), (3, 1 / 9)]:
        assert abs(lengths.count(length) - draws * share) < 4 * (draws * share * (1 - share)) ** 0.5  # 4 sigma


def test_children_depend_on_the_generator_alone() -> None:
    space = space_of(attention=[4] * 5, mlp=[4] * 5)
    first, again, other = (offspring((2,) * 10, 16, space, 3, random.Random(seed)) for seed in (5, 5, 6))
    assert len(first) == 16
    assert first == again != other
