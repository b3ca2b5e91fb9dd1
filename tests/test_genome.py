"""Genomes: a target level as whole levels, and the names of modules."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.database.levels import Kind, Ladder
from darwinlm.genome import Space, is_valid
from darwinlm.target.budget import level_budget, uniform


def ladder(layer: int, kind: Kind, top: int) -> Ladder:
    """A module of `top` columns that leave one by one."""
    name = f"model.layers.{layer}.{'self_attn' if kind == 'attention' else 'mlp'}"
    return Ladder(name, kind, layer, columns=top, group_size=1, removed=tuple(range(top + 1)))


def space_of(attention: Sequence[int] = (), mlp: Sequence[int] = ()) -> Space:
    """A space with ladders of the given tops, kinds in turn as in a model."""
    found = [ladder(layer, "attention", top) for layer, top in enumerate(attention)]
    found += [ladder(layer, "mlp", top) for layer, top in enumerate(mlp)]
    return Space(tuple(sorted(found, key=lambda l: (l.layer, l.kind))))


TOPS = st.lists(st.integers(1, 9), max_size=6)
SPACES = st.builds(space_of, TOPS, TOPS).filter(lambda space: space.ladders)
SHARES = st.floats(0, 1) | st.fractions(0, 1, max_denominator=12).map(float)


@given(SPACES, SHARES, st.integers(0, 2**32))
def test_a_uniform_genome_removes_its_share_of_each_kind(space: Space, share: float, seed: int) -> None:
    genome = uniform(level_budget(space, share), random.Random(seed))
    assert is_valid(space, genome)
    coarsest = 1 / min(ladder.top for ladder in space.ladders)
    assert all(abs(level / l.top - share) <= coarsest + 1e-6 for level, l in zip(genome, space.ladders, strict=True))
    for kind in ("attention", "mlp"):
        pairs = [(level, ladder.top) for level, ladder in zip(genome, space.ladders) if ladder.kind == kind]
        exact = share * sum(top for _, top in pairs)
        total = sum(level for level, _ in pairs)
        assert abs(total - exact) <= 0.5 + 1e-6
        assert space.totals(genome).get(kind, 0) == space.targets(share).get(kind, 0) == total


def test_a_share_of_whole_levels_is_uniform() -> None:
    """0.29 * 100 is less than 29 in floating point, and 0.29 * 300 is 87, but both are whole levels."""
    tops = (100, 300, 200, 300)
    for percent, seed in itertools.product(range(101), range(3)):
        genome = uniform(level_budget(space_of(mlp=tops), percent / 100), random.Random(seed))
        assert genome == tuple(top * percent // 100 for top in tops)


def test_a_fractional_level_is_spread_at_random() -> None:
    space = space_of(attention=[10] * 8)
    found = {uniform(level_budget(space, 0.525), random.Random(seed)) for seed in range(40)}
    assert {tuple(sorted(genome)) for genome in found} == {(5,) * 6 + (6,) * 2}
    assert len(found) > 14  # of 8 over 2 = 28
    assert uniform(level_budget(space, 0.525), random.Random(3)) == uniform(
        level_budget(space, 0.525), random.Random(3)
    )


@given(SPACES, st.data())
def test_names_and_levels_are_the_same_genome(space: Space, data: st.DataObject) -> None:
    genome = tuple(data.draw(st.integers(0, ladder.top)) for ladder in space.ladders)
    named = space.named(genome)
    assert set(named) == {ladder.name for ladder in space.ladders}
    assert space.genome(dict(reversed(named.items()))) == genome


def test_members_are_places_in_the_genome() -> None:
    space = space_of(attention=[2, 2], mlp=[3, 3, 3])
    assert space.kinds == ["attention", "mlp"]
    assert (space.members("attention"), space.members("mlp")) == ([0, 2], [1, 3, 4])
    assert space.totals((1, 20, 300, 4000, 50000)) == {"attention": 301, "mlp": 54020}


@pytest.mark.parametrize(
    ("genome", "valid"),
    [((0, 0), True), ((2, 3), True), ((3, 3), False), ((-1, 0), False), ((1,), False), ((1, 1, 1), False)],
)
def test_a_valid_genome_is_on_its_ladders(genome: tuple[int, ...], valid: bool) -> None:
    assert is_valid(space_of(attention=[2], mlp=[3]), genome) == valid
