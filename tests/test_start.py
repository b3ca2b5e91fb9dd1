"""The linearized start on known landscapes: what it finds, that it is never worse, and that it goes on after a stop."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings

from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome, Space
from darwinlm.search.propose import Estimate
from darwinlm.search.start import StartRecord, linearized_start
from darwinlm.target.budget import Budget, level_budget, uniform
from test_budget import assert_full, budgets
from test_genome import space_of

Score = Callable[[Genome], float]


class Landscape:
    """A known score, whose single-module differences are the costs; remembers what was asked."""

    def __init__(self, space: Space, score: Score, stop: int = -1) -> None:
        self.space, self.score, self.stop = space, score, stop
        self.linearized: list[Genome] = []
        self.scored: list[Genome] = []

    def estimate(self, genome: Genome, kl: float, round_: int) -> Estimate:
        self.linearized.append(genome)
        here = self.score(genome)
        costs = [
            [self.score((*genome[:m], level, *genome[m + 1 :])) - here for level in range(ladder.top + 1)]
            for m, ladder in enumerate(self.space.ladders)
        ]
        return Estimate(genome, kl, costs, [[abs(cost) / 2 for cost in row] for row in costs])

    def kls(self, genomes: list[Genome]) -> list[float]:
        if len(self.scored) == self.stop:
            raise KeyboardInterrupt
        self.scored += genomes
        return [self.score(genome) for genome in genomes]


def record(folder: Path, space: Space) -> StartRecord:
    return StartRecord(folder / "start.json", space, {"seed": 0})


def begin(folder: Path, space: Space, budget: Budget, start: Genome, landscape: Landscape, rounds: int = 20) -> Genome:
    return linearized_start(start, space.present, budget, landscape, rounds, record(folder, space))


@given(budgets())
@settings(max_examples=50, deadline=None)
def test_it_is_never_worse_keeps_every_limit_and_ends(tmp_path_factory: pytest.TempPathFactory, place) -> None:
    """A random quadratic form in levels, in which modules interact in any way."""
    space, budget, rng = place
    start = uniform(budget, rng)
    form = [[rng.gauss(0, 1) for _ in start] for _ in start]

    def score(genome: Genome) -> float:
        return 1e2 + sum(form[i][j] * a * b for i, a in enumerate(genome) for j, b in enumerate(genome))

    landscape = Landscape(space, score)
    found = begin(tmp_path_factory.mktemp("start"), space, budget, start, landscape)
    for genome in landscape.scored:
        assert_full(space, budget, genome)
    assert len(set(landscape.scored)) == len(landscape.scored)  # none twice
    assert score(found) == min(map(score, landscape.scored)) <= score(start)


def test_a_deep_separable_landscape_is_solved_in_few_evaluations(tmp_path: Path) -> None:
    """60 modules whose best levels lie up to 4 steps away; measuring every level of every module would be 480."""
    space = space_of(attention=[8] * 30, mlp=[8] * 30)
    best = tuple((1, 2, 4, 6, 7)[i // 2 % 5] for i in range(60))
    budget = level_budget(space, 0.5)

    def score(genome: Genome) -> float:
        return 0.1 + sum((a - b) ** 2 for a, b in zip(genome, best, strict=True))

    landscape = Landscape(space, score)
    assert begin(tmp_path, space, budget, (4,) * 60, landscape) == best
    assert len(landscape.scored) < 40


def test_the_first_round_looks_from_the_dense_model(tmp_path: Path) -> None:
    space = space_of(attention=[4] * 2, mlp=[4] * 2)
    landscape = Landscape(space, lambda genome: 1.0 + sum((level - 2) ** 2 for level in genome[:2]))
    begin(tmp_path, space, level_budget(space, 0.5), (2,) * 4, landscape, rounds=2)
    assert landscape.linearized[0] == (0,) * 4
    assert landscape.scored[0] == (2,) * 4


def test_no_rounds_score_the_start_alone(tmp_path: Path) -> None:
    space = space_of(attention=[4] * 2, mlp=[4] * 2)
    landscape = Landscape(space, lambda genome: float(sum(genome[:1])))
    assert begin(tmp_path, space, level_budget(space, 0.5), (2,) * 4, landscape, rounds=0) == (2,) * 4
    assert (landscape.scored, landscape.linearized) == ([(2,) * 4], [])


@pytest.mark.parametrize(("space", "start"), [(space_of(attention=[4], mlp=[4]), (2, 2)), (Space(()), ())])
def test_a_space_in_which_nothing_can_move(tmp_path: Path, space: Space, start: Genome) -> None:
    landscape = Landscape(space, lambda genome: 1.0 + sum(genome))
    assert begin(tmp_path, space, level_budget(space, 0.5), start, landscape) == start


def interacting(genome: Genome) -> float:
    rng = random.Random(5)
    pulls = [[rng.gauss(0, 1) for _ in genome] for _ in genome]
    return 50 + sum(pulls[i][j] * a * b for i, a in enumerate(genome) for j, b in enumerate(genome))


def test_stopped_anywhere_it_goes_on_to_the_same_end_and_measures_nothing_twice(tmp_path: Path) -> None:
    space = space_of(attention=[4] * 3, mlp=[4] * 3)
    budget, whole = level_budget(space, 0.5), Landscape(space, interacting)
    found = begin(tmp_path / "whole", space, budget, (2,) * 6, whole)
    stops = sorted({0, *itertools.accumulate([1] * len(whole.scored))})
    for stop in stops:
        folder, first, second = tmp_path / str(stop), Landscape(space, interacting, stop), Landscape(space, interacting)
        try:
            assert begin(folder, space, budget, (2,) * 6, first) == found
        except KeyboardInterrupt:
            assert begin(folder, space, budget, (2,) * 6, second) == found
        assert first.scored + second.scored == whole.scored
        assert first.linearized + second.linearized == whole.linearized


def test_scores_of_other_settings_do_not_count_and_damage_is_said(tmp_path: Path) -> None:
    space = space_of(attention=[4] * 2, mlp=[4] * 2)
    kept = record(tmp_path, space)
    kept.add({(2,) * 4: 0.5})
    assert record(tmp_path, space).load() == {(2,) * 4: 0.5}
    assert StartRecord(kept.file, space, {"seed": 1}).load() == {}
    kept.file.write_text(kept.file.read_text().replace("0.5", '"?"'))
    with pytest.raises(DamagedFileError, match=r"start\.json"):
        record(tmp_path, space).load()
