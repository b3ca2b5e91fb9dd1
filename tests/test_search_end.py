"""When a search ends, what is looked at on the way, and that neither changes what it finds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome
from darwinlm.search import loop
from darwinlm.search.record import SearchRecord, SearchState
from darwinlm.target.budget import Budget, level_limits
from test_evolution import IDENTITY, SPACE, START, Landscape, Noisy, Stopping, config, history, result

HIDDEN: Genome = (4, 0, 1, 3, 4, 0)
Check = Callable[[Genome], dict[str, float]]


def search(folder: Path, generations: int, fitness: Any, check: Check | None = None, **changes: Any) -> SearchState:
    budget = Budget(level_limits(SPACE, SPACE.totals(START)), SPACE.present)
    asked = (budget, fitness, config(generations, **changes), 0, SearchRecord(folder, IDENTITY, SPACE), check)
    return loop.search(lambda: START, SPACE, *asked)


def parents(lines: list[dict[str, Any]]) -> list[Genome]:
    """The parent after every generation, by the changes that the history tells."""
    found, levels = [], SPACE.named(START)
    for line in lines:
        levels |= {name: levels[name] + steps for name, steps in line["changes"].items()}
        found.append(SPACE.genome(levels))
    return found


def unbeaten_after(lines: list[dict[str, Any]]) -> list[int]:
    """Generations without a better candidate, after every generation."""
    counts = itertools.accumulate(lines, lambda count, line: 0 if line["improved"] else count + 1, initial=0)
    return list(counts)[1:]


def test_a_parent_that_stands_ends_the_search(tmp_path: Path) -> None:
    """Which is then finished, until more patience is asked for."""
    first = Landscape(START)  # the start is the best there is
    state = search(tmp_path, 50, first, patience=3)
    assert (result(state), state.unbeaten, len(first.asked)) == ((3, START, 0.0), 3, 9)
    lines, again = history(tmp_path), Landscape(START)
    for generations in (50, 3, 2):
        assert search(tmp_path, generations, again, patience=3) == SearchRecord(tmp_path, IDENTITY, SPACE).load()
    assert (again.asked, history(tmp_path)) == ([], lines)
    assert search(tmp_path, 50, again, patience=5).generation == 5
    assert [generation for _, _, generation, _ in again.asked] == [3] * 3 + [4] * 3
    assert search(tmp_path, 7, again, patience=0).generation == 7
    assert [line["generation"] for line in history(tmp_path)] == list(range(7))


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_cuts_the_search_that_there_would_be(tmp_path: Path, patience: int) -> None:
    """After the first so many generations in a row that found nothing better."""
    search(tmp_path / "long", 40, Noisy(HIDDEN))
    lines = history(tmp_path / "long")
    end = unbeaten_after(lines).index(patience) + 1
    state = search(tmp_path / "short", 40, Noisy(HIDDEN), patience=patience)
    assert history(tmp_path / "short") == lines[:end]
    assert (state.generation, state.unbeaten, state.parent) == (end, patience, parents(lines)[end - 1])
    assert 0 < end < 40
    search(tmp_path / "short", 40, Noisy(HIDDEN), patience=0)
    assert history(tmp_path / "short") == lines


def test_patience_survives_a_stop_anywhere(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", 40, Noisy(HIDDEN), patience=3)
    lines = history(tmp_path / "whole")
    for call in range(0, 3 * whole.generation, 7):
        folder = tmp_path / f"stopped{call}"
        with pytest.raises(KeyboardInterrupt):
            search(folder, 40, Stopping(HIDDEN, call, KeyboardInterrupt()), patience=3)
        state = SearchRecord(folder, IDENTITY, SPACE).load()
        assert state is not None
        assert state.unbeaten == [0, *unbeaten_after(lines)][call // 3]
        end = search(folder, 40, Noisy(HIDDEN), patience=3)
        assert (result(end), end.unbeaten) == (result(whole), 3)
        assert history(folder) == lines


@pytest.mark.parametrize("unbeaten", ["some", None, "missing"])
def test_a_state_without_its_count_is_damaged(tmp_path: Path, unbeaten: Any) -> None:
    search(tmp_path, 2, Landscape(START))
    saved = json.loads((tmp_path / "state.json").read_text()) | {"unbeaten": unbeaten}
    if unbeaten == "missing":
        del saved["unbeaten"]
    (tmp_path / "state.json").write_text(json.dumps(saved))
    with pytest.raises(DamagedFileError, match=r"state\.json.*--restart"):
        search(tmp_path, 4, Landscape(START))


def without_checks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "held_out"} for line in lines]


@pytest.mark.parametrize(("every", "checked"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6]), (8, [8]), (9, []), (0, [])])
def test_parents_are_looked_at_and_nothing_else_changes(tmp_path: Path, every: int, checked: list[int]) -> None:
    seen: list[Genome] = []

    def check(genome: Genome) -> dict[str, float]:
        seen.append(genome)
        return {"kl": Landscape(HIDDEN).of(genome), "perplexity": 1.5}

    plain = search(tmp_path / "plain", 8, Noisy(HIDDEN), check_every=every)  # nothing to look with
    watched = search(tmp_path / "watched", 8, Noisy(HIDDEN), check, check_every=every)
    lines = history(tmp_path / "watched")
    assert result(watched) == result(plain)
    assert without_checks(lines) == history(tmp_path / "plain")
    standing = parents(lines)
    assert seen == [standing[after - 1] for after in checked]
    found = {i + 1: line["held_out"] for i, line in enumerate(lines) if "held_out" in line}
    assert found == {after: {"kl": Landscape(HIDDEN).of(standing[after - 1]), "perplexity": 1.5} for after in checked}


def test_a_continued_search_looks_where_it_would_have_looked(tmp_path: Path) -> None:
    def check(genome: Genome) -> dict[str, float]:
        return {"kl": Landscape(HIDDEN).of(genome)}

    search(tmp_path / "whole", 7, Noisy(HIDDEN), check, check_every=2)
    for first in range(1, 7):
        search(tmp_path / str(first), first, Noisy(HIDDEN), check, check_every=2)
        search(tmp_path / str(first), 7, Noisy(HIDDEN), check, check_every=2)
        assert history(tmp_path / str(first)) == history(tmp_path / "whole")
