"""Evolution over levels with successive selection: Algorithm 1 of arXiv 2502.07780, asked and told.

for step in evolution:
    evolution.tell(step, scores of step.candidates)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from darwinlm.config import SearchConfig, Stage
from darwinlm.genome import Genome, Space
from darwinlm.runtime import ranks
from darwinlm.runtime.seeds import python_random
from darwinlm.search.mutation import offspring
from darwinlm.search.record import SearchState
from darwinlm.target.budget import Budget


@dataclass(frozen=True)
class Step:
    """One selection step of a generation: what is to be trained and scored."""

    candidates: list[Genome]
    parent: Genome
    """What they are children of; it competes in the last step."""
    stage: Stage
    generation: int
    index: int
    last: bool
    """Whether the generation ends with it."""


class Evolution:
    """Generations of children of one parent, of whom selection steps leave ever fewer, until one is the next parent.

    Args:
        state: where it stands.
        config: generations, offspring and selection steps.
        budget: that every genome keeps.
        seed: of the mutations.
        founders: of the first parent, genomes that compete with its first children.
    """

    def __init__(
        self,
        state: SearchState,
        config: SearchConfig,
        budget: Budget,
        seed: int,
        founders: Callable[[Genome], list[Genome]] | None = None,
    ) -> None:
        self.state, self.config, self.budget, self.seed, self.founders = state, config, budget, seed, founders
        self.line: dict[str, Any] = {}
        """What the history says of the last generation."""

    def __iter__(self) -> Iterator[Step]:
        """The selection steps to the end of the search; each must be told its scores before the next one is asked for."""
        while not finished(self.state, self.config):
            self._begin()
            for index, stage in enumerate(self.config.stages):
                last = index == len(self.config.stages) - 1
                self._candidates += [self.state.parent] if last else []  # elitism: the parent must be beaten
                yield Step(self._candidates, self.state.parent, stage, self.state.generation, index, last)

    def tell(self, step: Step, scores: Tensor) -> None:
        """Let the best of a step survive; after the last step of a generation, become the next one's parent.

        Args:
            step: that was asked for last.
            scores: (candidates, sequences) parts of the KL whose means are the candidates' scores, the lower the better.
        """
        of = dict(zip(step.candidates, scores, strict=True))
        survivors = sorted(step.candidates, key=lambda genome: of[genome].mean().item())[: step.stage.survivors]
        self._candidates = survivors
        if step.last:
            winner = survivors[0] if self._leads(of[survivors[0]], of[step.parent]) else step.parent
            self._advance(winner, of[winner].mean().item())
        decided = ranks.broadcast((self._candidates, self.state, self.line))  # not by each from its own floats
        self._candidates, self.state, self.line = decided

    def _begin(self) -> None:
        self._began = time.perf_counter()
        rng, parent = python_random(self.seed, "mutation", self.state.generation), self.state.parent
        first = self.founders(parent)[: self.config.offspring] if self.founders and not self.state.generation else []
        children = offspring(parent, self.config.offspring - len(first), self.budget, self.config.switches, rng)
        self._candidates = list(dict.fromkeys(genome for genome in [*first, *children] if genome != parent))
        self._children = len(self._candidates)

    def _advance(self, winner: Genome, kl: float) -> None:
        seconds, improved = time.perf_counter() - self._began, winner != self.state.parent
        generation, unbeaten = self.state.generation, 0 if improved else self.state.unbeaten + 1
        self.line = {"generation": generation, "kl": kl, "improved": improved, "seconds": round(seconds, 3)}
        self.line |= {"children": self._children}
        self.state = SearchState(generation + 1, winner, kl, self.state.seconds + seconds, unbeaten)

    def _leads(self, child: Tensor, parent: Tensor) -> bool:
        """Whether a child beats the parent by `search.confidence` standard errors of their difference over sequences."""
        if not self.config.confidence:
            return True
        lead = parent - child
        doubt = (lead.std() / math.sqrt(len(lead))).item() if len(lead) > 1 else math.inf
        return lead.mean().item() > self.config.confidence * doubt


def finished(state: SearchState | None, config: SearchConfig) -> bool:
    """Whether a search is at its end: all generations are done, or patience is."""
    if state is None:
        return False
    return state.generation >= config.generations or 0 < config.patience <= state.unbeaten


def changes(space: Space, before: Genome, after: Genome) -> dict[str, int]:
    """{module: steps} of what a winner changed."""
    return {l.name: new - old for l, old, new in zip(space.ladders, before, after) if new != old}
