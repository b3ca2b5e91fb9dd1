"""The search loop: Algorithm 1 of arXiv 2502.07780."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from darwinlm.config import SearchConfig, Stage
from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome, Space, is_valid
from darwinlm.runtime import ranks
from darwinlm.runtime.files import append_line, read_json, write_json, write_text
from darwinlm.runtime.progress import log, progress
from darwinlm.runtime.seeds import python_random
from darwinlm.search.mutation import Mutation, offspring


class Fitness(Protocol):
    """Scores candidates of one selection step on the same tokens; lower is better."""

    def __call__(
        self, candidates: list[Genome], parent: Genome, stage: Stage, generation: int, index: int
    ) -> list[float]: ...


Uncertainty = Callable[[Genome, Genome], float]
"""Standard error of the difference between the scores of two genomes in the last selection step."""


@dataclass(frozen=True)
class SearchState:
    """All that the next generation depends on, besides the settings."""

    generation: int
    """Generations done."""
    parent: Genome
    kl: float
    """The parent's score in the last selection step; infinite before the first one."""
    seconds: float
    """Time spent so far."""
    unbeaten: int = 0
    """Generations that the parent has stood without being beaten."""


class SearchRecord:
    """The search on disk: `state.json`, replaced after every generation, and `history.jsonl`, a line for each.

    Args:
        folder: where they lie.
        identity: the settings that the search belongs to.
        space: the modules.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], space: Space) -> None:
        self.folder, self.identity, self.space = folder, identity, space

    @property
    def state_file(self) -> Path:
        """Where the state lies."""
        return self.folder / "state.json"

    def stored_identity(self) -> dict[str, Any] | None:
        """The settings of the search that lies there; None where there is none."""
        return read_json(self.state_file).get("identity") if self.state_file.exists() else None

    def load(self) -> SearchState | None:
        """The last saved state; None where the search has not begun."""
        if not self.state_file.exists():
            return None
        saved = read_json(self.state_file)
        try:
            kl = math.inf if saved["kl"] is None else float(saved["kl"])
            parent, unbeaten = self.space.genome(saved["parent"]), int(saved["unbeaten"])
            state = SearchState(int(saved["generation"]), parent, kl, float(saved["seconds"]), unbeaten)
            if not is_valid(self.space, state.parent):
                raise ValueError("a level is on no ladder")
        except (KeyError, TypeError, ValueError) as fault:
            raise DamagedFileError(
                f"'{self.state_file}' is damaged ({fault}). Run the search again with --restart."
            ) from fault
        self._cut_history(state.generation)
        return state

    def save(self, state: SearchState, line: dict[str, Any] | None = None) -> None:
        """Append the generation's line to the history, then replace the state; the first rank does it for all."""
        if not ranks.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if line is not None:
            append_line(self.folder / "history.jsonl", json.dumps(line))
        saved = {
            "generation": state.generation,
            "kl": state.kl if math.isfinite(state.kl) else None,
            "seconds": round(state.seconds, 3),
            "unbeaten": state.unbeaten,
            "parent": self.space.named(state.parent),
            "identity": self.identity,
        }
        write_json(self.state_file, saved)

    def _cut_history(self, generations: int) -> None:
        """Drop lines of generations that the saved state does not know: they will be made again."""
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        try:
            known = [json.loads(line)["generation"] for line in lines[:generations]]
        except (ValueError, KeyError, TypeError):
            known = []
        if known != list(range(generations)):
            raise DamagedFileError(
                f"'{path}' does not hold the {generations} generations that are done. Run with --restart."
            )
        if len(lines) != generations and ranks.is_first():
            write_text(path, "".join(line + "\n" for line in lines[:generations]))


def finished(state: SearchState | None, config: SearchConfig) -> bool:
    """Whether a search is at its end: all generations are done, or patience is."""
    if state is None:
        return False
    return state.generation >= config.generations or 0 < config.patience <= state.unbeaten


def evolve(
    start: Callable[[], Genome],
    space: Space,
    config: SearchConfig,
    seed: int,
    fitness: Fitness,
    record: SearchRecord,
    check: Callable[[Genome], dict[str, float]] | None = None,
    mutate: Mutation = offspring,
    uncertainty: Uncertainty | None = None,
) -> SearchState:
    """Run the search to its last generation, from where it stopped or from the start.

    Args:
        start: gives the first parent.
        space: the modules.
        config: generations, offspring and selection steps.
        seed: of the mutations.
        fitness: trains and scores candidates.
        record: where every generation is saved.
        check: scores of a parent on held-out text, for the history alone: nothing is chosen by them.
        mutate: makes the children of a generation; by default level switches within a kind.
        uncertainty: of two scores of the last step; None where any better score will do, whatever `search.confidence`.

    Returns:
        The last state; its parent is the result.
    """
    state = record.load()
    if state is None:
        state = SearchState(0, start(), math.inf, 0.0)
        record.save(state)
    if finished(state, config):
        return state
    with progress("Search", config.generations, done=state.generation) as advance:
        while not finished(state, config):
            before = state
            state, line = _generation(before, space, config, seed, fitness, mutate, uncertainty)
            line["changes"] = _changes(space, before.parent, state.parent)
            if check and config.check_every and state.generation % config.check_every == 0 and ranks.is_first():
                line["held_out"] = check(state.parent)
            record.save(state, line)
            advance(f"KL {state.kl:.4f}")
    log.info("Search: %d generations, KL %.4f on the tokens of the last selection.", state.generation, state.kl)
    return state


def _generation(
    state: SearchState,
    space: Space,
    config: SearchConfig,
    seed: int,
    fitness: Fitness,
    mutate: Mutation,
    uncertainty: Uncertainty | None,
) -> tuple[SearchState, dict[str, Any]]:
    """Mutate the parent, let the selection steps choose among its children; the next state and its line of history."""
    began = time.perf_counter()
    rng = python_random(seed, "mutation", state.generation)
    parent, candidates = state.parent, mutate(state.parent, config.offspring, space, config.switches, rng)
    children, scores = len(candidates), dict[Genome, float]()
    for index, stage in enumerate(config.stages):
        if index == len(config.stages) - 1:
            candidates = [*candidates, parent]  # elitism: the parent must be beaten
        scores = dict(zip(candidates, fitness(candidates, parent, stage, state.generation, index), strict=True))
        candidates = sorted(candidates, key=scores.__getitem__)[: stage.survivors]
    winner = candidates[0]
    if uncertainty and config.confidence and winner != parent:
        lead, doubt = scores[parent] - scores[winner], config.confidence * uncertainty(winner, parent)
        winner = winner if lead > doubt else parent
    seconds = time.perf_counter() - began
    improved, kl = winner != parent, scores[winner]
    line = {"generation": state.generation, "kl": kl, "improved": improved, "seconds": round(seconds, 3)}
    unbeaten = 0 if improved else state.unbeaten + 1
    after = SearchState(state.generation + 1, winner, kl, state.seconds + seconds, unbeaten)
    return after, {**line, "children": children}


def _changes(space: Space, before: Genome, after: Genome) -> dict[str, int]:
    """{module: steps} of what the winner changed."""
    return {l.name: new - old for l, old, new in zip(space.ladders, before, after) if new != old}
