"""The search loop on known landscapes: it finds the optimum, never loses ground, and continues as if never stopped."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darwinlm.config import SearchConfig, Stage
from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome, Space
from darwinlm.search import loop, record
from darwinlm.search.evolution import Evolution, Step
from darwinlm.search.record import SearchRecord, SearchState
from darwinlm.target.budget import Budget, level_limits
from test_genome import space_of

SPACE = space_of(attention=[4] * 3, mlp=[4] * 3)
START: Genome = (2,) * 6
IDENTITY = {"seed": 0, "model": "pico"}


class Landscape:
    """Weighted squared distance to a hidden genome, with what the loop asked for."""

    def __init__(self, hidden: Genome, weights: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.0, 11.0)) -> None:
        self.hidden, self.weights = hidden, weights
        self.asked: list[tuple[list[Genome], Stage, int, int]] = []

    def of(self, genome: Genome) -> float:
        return sum(w * (level - hidden) ** 2 for w, level, hidden in zip(self.weights, genome, self.hidden))

    def __call__(self, step: Step) -> Tensor:
        self.asked.append((list(step.candidates), step.stage, step.generation, step.index))
        return torch.tensor([[self.of(genome)] for genome in step.candidates], dtype=torch.float64)


class Noisy(Landscape):
    """Another landscape in every selection step, as with other tokens, but the same whenever the step is repeated."""

    def __call__(self, step: Step) -> Tensor:
        noise = [[(hash((genome, step.generation, step.index)) % 1000) / 50] for genome in step.candidates]
        return super().__call__(step) + torch.tensor(noise, dtype=torch.float64)


class Stopping(Noisy):
    """Raises at one call, as an interrupt or a failing device does."""

    def __init__(self, hidden: Genome, at: int, fault: BaseException) -> None:
        super().__init__(hidden)
        self.at, self.fault = at, fault

    def __call__(self, step: Step) -> Tensor:
        if len(self.asked) == self.at:
            raise self.fault
        return super().__call__(step)


def config(generations: int, **changes: Any) -> SearchConfig:
    lists = {"survivors": [4, 2, 1], "train_tokens": [1, 2, 3], "select_tokens": [4, 5, 6]}
    return SearchConfig(**{"generations": generations, "offspring": 8, **lists, **changes})


def search(
    folder: Path,
    generations: int,
    fitness: Any,
    *,
    space: Space = SPACE,
    start: Genome = START,
    seed: int = 0,
    **changes: Any,
):
    budget, kept = (
        Budget(level_limits(space, space.totals(start)), space.present),
        SearchRecord(folder, IDENTITY, space),
    )
    return loop.search(lambda: start, space, budget, fitness, config(generations, **changes), seed, kept)


def history(folder: Path) -> list[dict[str, Any]]:
    """The lines without their times."""
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def result(state: SearchState) -> tuple[int, Genome, float]:
    return state.generation, state.parent, state.kl


@settings(max_examples=5)
@given(hidden=st.tuples(*[st.integers(0, 4)] * 6), seed=st.integers(0, 99))
def test_the_optimum_under_the_target_is_found(
    tmp_path_factory: pytest.TempPathFactory, hidden: Genome, seed: int
) -> None:
    landscape = Landscape(hidden)
    reachable = (g for g in itertools.product(range(5), repeat=6) if SPACE.totals(g) == SPACE.totals(START))
    state = search(tmp_path_factory.mktemp("search"), 25, landscape, seed=seed, offspring=12)
    assert state.kl == landscape.of(state.parent) == min(map(landscape.of, reachable))


def test_the_parent_always_competes_and_no_ground_is_lost(tmp_path: Path) -> None:
    landscape = Landscape((4, 0, 1, 3, 4, 0))
    state = search(tmp_path, 12, landscape)
    lines, parent = history(tmp_path), START
    finals = [candidates for candidates, _, _, index in landscape.asked if index == 2]
    for line, final in zip(lines, finals, strict=True):
        assert final[-1] == parent  # of the generation before
        best = min(final, key=landscape.of)
        assert line["kl"] == landscape.of(best)
        assert line["improved"] == (best != parent)
        assert line["changes"] == {l.name: b - a for l, a, b in zip(SPACE.ladders, parent, best) if a != b}
        parent = best
    assert [line["generation"] for line in lines] == list(range(12))
    assert all(a["kl"] >= b["kl"] for a, b in itertools.pairwise(lines))
    assert result(state) == (12, parent, lines[-1]["kl"])


def test_founders_compete_in_the_first_generation_alone(tmp_path: Path) -> None:
    """Also one that no few switches reach; the rest of the offspring are children as ever."""
    landscape, far = Landscape((4, 0, 0, 4, 4, 0)), (4, 0, 0, 4, 2, 2)
    budget, kept = (
        Budget(level_limits(SPACE, SPACE.totals(START)), SPACE.present),
        SearchRecord(tmp_path, IDENTITY, SPACE),
    )
    loop.search(lambda: START, SPACE, budget, landscape, config(2), 0, kept, founders=lambda parent: [far, parent])
    (first, *_), (second, *_) = ([c for c, _, g, i in landscape.asked if (g, i) == (n, 0)] for n in (0, 1))
    assert far in first
    assert START not in first
    assert len(first) == 7
    assert far not in second
    assert history(tmp_path)[0]["improved"]


def test_a_selection_step_passes_its_best_on_to_the_next(tmp_path: Path) -> None:
    noisy = Noisy((4, 0, 1, 3, 4, 0))
    stages = config(3).stages
    search(tmp_path, 3, noisy)
    asked = list(noisy.asked)
    assert [(stage, generation, index) for _, stage, generation, index in asked] == [
        (stage, generation, index) for generation in range(3) for index, stage in enumerate(stages)
    ]
    assert [len(candidates) for candidates, *_ in asked] == [8, 4, 2 + 1] * 3
    for (before, stage, generation, index), (after, *_) in itertools.pairwise(asked):
        if index < 2:
            scores = dict(zip(before, noisy(Step(before, START, stage, generation, index, False))[:, 0].tolist()))
            assert sorted(map(scores.get, after[: stage.survivors])) == sorted(scores.values())[: stage.survivors]


def test_a_single_step_scores_children_and_parent_together(tmp_path: Path) -> None:
    landscape = Landscape((4, 0, 1, 3, 4, 0))
    search(tmp_path, 1, landscape, survivors=[1], train_tokens=[0], select_tokens=[8])
    ((candidates, stage, _, _),) = landscape.asked
    assert (len(candidates), candidates[-1], stage) == (9, START, Stage(1, 0, 8))


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("device lost")], ids=["interrupt", "fault"])
def test_a_search_stopped_anywhere_continues_to_the_same_end(tmp_path: Path, fault: BaseException) -> None:
    hidden = (4, 0, 1, 3, 4, 0)
    whole = search(tmp_path / "whole", 4, Noisy(hidden))
    for call in range(4 * 3):
        folder = tmp_path / f"stopped{call}"
        with pytest.raises(type(fault)):
            search(folder, 4, Stopping(hidden, call, fault))
        assert result(search(folder, 4, Noisy(hidden))) == result(whole)
        assert history(folder) == history(tmp_path / "whole")


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("write", range(1, 4))
def test_a_line_without_its_state_is_dropped_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int, torn: bool
) -> None:
    """Killed between the append to the history and the new state, perhaps in the middle of the line."""
    hidden, done = (4, 0, 1, 3, 4, 0), itertools.count()
    whole = search(tmp_path / "whole", 3, Noisy(hidden))

    def killed(*written: Any) -> None:
        if next(done) == write:
            raise KeyboardInterrupt
        write_json(*written)

    write_json, folder = record.write_json, tmp_path / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(record, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            search(folder, 3, Noisy(hidden))
    text = (folder / "history.jsonl").read_text()
    assert text.count("\n") == write  # one more than the state knows
    (folder / "history.jsonl").write_text(text[:-9] if torn else text)
    assert result(search(folder, 3, Noisy(hidden))) == result(whole)
    assert history(folder) == history(tmp_path / "whole")


def test_more_generations_go_on_where_a_finished_search_ended(tmp_path: Path) -> None:
    hidden = (4, 0, 1, 3, 4, 0)
    long, short = search(tmp_path / "long", 7, Noisy(hidden)), search(tmp_path / "short", 3, Noisy(hidden))
    assert short.generation == 3
    again = Noisy(hidden)
    assert result(search(tmp_path / "short", 3, again)) == result(short)
    assert again.asked == []  # finished: nothing is scored anew
    assert result(search(tmp_path / "short", 7, Noisy(hidden))) == result(long)
    assert history(tmp_path / "short") == history(tmp_path / "long")


def test_the_seed_decides_the_search(tmp_path: Path) -> None:
    asked = []
    for name, seed in [("first", 1), ("again", 1), ("other", 2)]:
        landscape = Landscape((4, 0, 1, 3, 4, 0))
        search(tmp_path / name, 2, landscape, seed=seed)
        asked.append(landscape.asked)
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize(
    ("space", "start", "children"),
    [
        (space_of(attention=[4], mlp=[4]), (2, 2), 0),  # nothing can move
        (space_of(mlp=[1, 1]), (1, 0), 1),  # one neighbour, and back
        (Space(()), (), 0),
    ],
)
def test_a_space_that_runs_out_of_children_ends(tmp_path: Path, space: Space, start: Genome, children: int) -> None:
    landscape = Landscape(start, (1.0,) * len(start))
    state = search(tmp_path, 3, landscape, space=space, start=start)
    assert result(state) == (3, start, 0.0)
    assert [line["children"] for line in history(tmp_path)] == [children] * 3


def test_the_state_on_disk_is_the_state(tmp_path: Path) -> None:
    record = SearchRecord(tmp_path, IDENTITY, SPACE)
    assert (record.load(), record.stored_identity()) == (None, None)
    for state in (SearchState(0, START, math.inf, 0.0), SearchState(0, (0, 1, 2, 3, 4, 0), 0.1 + 0.2, 1.5)):
        record.save(state)
        assert record.load() == state
    assert record.stored_identity() == IDENTITY


def _without(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda saved: json.dumps({k: v for k, v in saved.items() if k != key})


def _with(key: str, value: Any) -> Callable[[dict[str, Any]], str]:
    return lambda saved: json.dumps({**saved, key: value})


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: json.dumps(saved)[:-20],
        lambda saved: "",
        lambda saved: "[]",
        *map(_without, ("generation", "parent", "kl", "seconds")),
        *(_with("parent", parent) for parent in (None, {}, {"model.layers.0.mlp": 2})),
        _with("parent", SPACE.named((2, 2, 2, 2, 2, 5))),  # no such level
        _with("generation", "two"),
    ],
)
def test_a_damaged_state_is_said_so(tmp_path: Path, damage: Callable[[dict[str, Any]], str]) -> None:
    search(tmp_path, 2, Landscape(START))
    file = tmp_path / "state.json"
    file.write_text(damage(json.loads(file.read_text())))
    with pytest.raises(DamagedFileError, match=r"state\.json"):
        search(tmp_path, 4, Landscape(START))


@pytest.mark.parametrize(
    ("gap", "confidence", "wins"), [(0.5, 0.0, True), (0.5, 2.0, True), (0.1, 2.0, False), (0.1, 0.0, True)]
)
def test_a_child_must_lead_by_standard_errors_over_sequences(gap: float, confidence: float, wins: bool) -> None:
    """The differences of 16 sequences scatter by 0.4 around the gap: a standard error of 0.1."""
    one_step = config(1, survivors=[1], train_tokens=[0], select_tokens=[8], confidence=confidence)
    budget = Budget(level_limits(SPACE, SPACE.totals(START)), (0,) * 6)
    evolution = Evolution(SearchState(0, START, math.inf, 0.0), one_step, budget, 0)
    step = next(iter(evolution))
    scores = torch.rand(len(step.candidates), 16, dtype=torch.float64) + 10
    scatter = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    scores[3] = scores[-1] - gap + 0.4 * scatter / scatter.std()
    scores[[i for i in range(len(scores)) if i not in (3, len(scores) - 1)]] += 100
    evolution.tell(step, scores)
    assert (evolution.state.parent == step.candidates[3]) == wins
    assert evolution.line["improved"] == wins
