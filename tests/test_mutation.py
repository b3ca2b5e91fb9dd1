"""Level switches: what they keep, how they are drawn, and that they end."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.genome import Genome, Space, is_valid
from darwinlm.search.mutation import level_switch, offspring
from darwinlm.target.budget import Budget, level_limits
from test_genome import SPACES, space_of

SEEDS = st.integers(0, 2**32)


@st.composite
def places(draw: st.DrawFn) -> tuple[Space, Genome]:
    """A space and any genome of it, ends of the ladders included."""
    space = draw(SPACES)
    return space, tuple(draw(st.integers(0, ladder.top)) for ladder in space.ladders)


def at(space: Space, genome: Genome) -> Budget:
    """The level target that a genome just meets."""
    return Budget(level_limits(space, space.totals(genome)), space.present)


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
    children = offspring(parent, count, at(space, parent), switches, random.Random(seed))
    assert len(children) <= count
    assert len({parent, *children}) == len(children) + 1  # no duplicates, and not the parent
    for child in children:
        assert is_valid(space, child)
        assert space.totals(child) == space.totals(parent)
        assert 2 <= distance(child, parent) <= 2 * switches


@given(places(), SEEDS)
def test_one_switch_moves_a_step_from_a_donor_to_another_module(place: tuple[Space, Genome], seed: int) -> None:
    space, parent = place
    child = level_switch(parent, at(space, parent), random.Random(seed))
    moved = sorted((new - old, ladder.kind) for old, new, ladder in zip(parent, child, space.ladders) if new != old)
    assert [step for step, _ in moved] in ([], [-1, 1])
    assert len({kind for _, kind in moved}) == bool(moved)


@given(
    st.builds(space_of, *[st.lists(st.integers(1, 2), max_size=3)] * 2).filter(lambda s: s.ladders), st.data(), SEEDS
)
def test_every_neighbour_is_found_and_no_other(space: Space, data: st.DataObject, seed: int) -> None:
    parent = tuple(data.draw(st.integers(0, ladder.top)) for ladder in space.ladders)
    truth = neighbours(space, parent)
    assert set(offspring(parent, len(truth) + 5, at(space, parent), 1, random.Random(seed))) == truth
    if not truth:
        assert level_switch(parent, at(space, parent), random.Random(seed)) == parent


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
    assert offspring(parent, 16, at(space, parent), switches, random.Random(0)) == []


def test_a_kind_that_cannot_move_leaves_the_draw_to_the_other() -> None:
    space, parent = space_of(attention=[9, 9, 9, 9], mlp=[1, 1]), (0, 0, 0, 1, 0, 0)
    children = {level_switch(parent, at(space, parent), random.Random(seed)) for seed in range(20)}
    assert children == {(0, 1, 0, 0, 0, 0)}


def test_kinds_are_drawn_in_proportion_to_their_modules() -> None:
    space, draws = space_of(attention=[4] * 2, mlp=[4] * 6), 2000
    rng, parent = random.Random(1), (2,) * 8
    attention = sum(
        level_switch(parent, at(space, parent), rng)[0] != 2 for _ in range(draws)
    )  # member 0 or 2, always both
    assert abs(attention - draws / 4) < 4 * (draws * 1 / 4 * 3 / 4) ** 0.5  # 4 sigma


def test_switches_are_the_lesser_of_two_dice() -> None:
    """P(min(u1, u2) = k) for u ~ U{1, 2, 3} is 5/9, 3/9, 1/9; among 100 modules a switch rarely undoes part of another."""
    space, parent, draws = space_of(mlp=[99] * 100), (50,) * 100, 400
    lengths = [
        distance(child, parent) // 2 for child in offspring(parent, draws, at(space, parent), 3, random.Random(2))
    ]
    for length, share in [(1, 5 / 9), (2, 3 / 9), (3, 1 / 9)]:
        assert abs(lengths.count(length) - draws * share) < 4 * (draws * share * (1 - share)) ** 0.5  # 4 sigma


def test_children_depend_on_the_generator_alone() -> None:
    space = space_of(attention=[4] * 5, mlp=[4] * 5)
    first, again, other = (offspring((2,) * 10, 16, at(space, (2,) * 10), 3, random.Random(seed)) for seed in (5, 5, 6))
    assert len(first) == 16
    assert first == again != other


def printed(parent: Genome, space: Space, count: int, switches: int, rng: random.Random) -> list[Genome]:
    """Section 3.4 as it is printed: within a kind, drawn by its modules, one goes up a step and another goes down."""
    children: list[Genome] = []
    while len(children) < count:
        levels = list(parent)
        for _ in range(min(rng.randint(1, switches), rng.randint(1, switches))):
            kind = rng.choices(space.kinds, [len(space.members(kind)) for kind in space.kinds])[0]
            up = rng.choice([i for i in space.members(kind) if levels[i] < space.ladders[i].top])
            down = rng.choice([i for i in space.members(kind) if levels[i] > 0 and i != up])
            levels[up] += 1
            levels[down] -= 1
        if tuple(levels) != parent and tuple(levels) not in children:
            children.append(tuple(levels))
    return children


def test_a_level_target_has_the_children_of_the_paper() -> None:
    space, parent = space_of(attention=[8] * 6, mlp=[8] * 6), (4,) * 12
    for seed in range(20):
        found = offspring(parent, 16, at(space, parent), 3, random.Random(seed))
        assert found == printed(parent, space, 16, 3, random.Random(seed))
