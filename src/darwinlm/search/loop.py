"""The search: a start, and generations of candidates that are trained, scored and selected (arXiv 2502.07780, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.genome import Genome, Space
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import log, progress
from darwinlm.search.evolution import Evolution, Step, changes, finished
from darwinlm.search.fitness import Pools
from darwinlm.search.propose import diverse
from darwinlm.search.record import SearchRecord, SearchState
from darwinlm.search.start import ModelMeasures, StartRecord, linearized_start
from darwinlm.target.budget import Budget

Check = Callable[[Genome], dict[str, float]]
"""Scores of a genome on held-out text, for the history alone: nothing is chosen by them."""
Fitness = Callable[[Step], Tensor]
"""(candidates, sequences) parts of the KL of a selection step, as `Evolution.tell` takes them; the lower the better."""


def search(
    start: Callable[[], Genome],
    space: Space,
    budget: Budget,
    fitness: Fitness,
    config: SearchConfig,
    seed: int,
    record: SearchRecord,
    check: Check | None = None,
    founders: Callable[[Genome], list[Genome]] | None = None,
) -> SearchState:
    """Run the search to its last generation, from where it stopped or from the start.

    Args:
        start: gives the first parent.
        space: the modules.
        budget: that every genome keeps.
        fitness: builds, trains and scores candidates.
        config: generations, offspring and selection steps.
        seed: of the mutations.
        record: where every generation is saved.
        check: of parents, every `search.check_every` generations.
        founders: of the first parent, genomes that compete with its first children.

    Returns:
        The last state; its parent is the result.
    """
    state = ranks.broadcast(record.load())  # a late rank might find what the first one has saved since
    if state is None:
        state = SearchState(0, ranks.broadcast(start()), math.inf, 0.0)
        record.save(state)
    if finished(state, config):
        return state
    evolution = Evolution(state, config, budget, seed, founders)
    with progress("Search", config.generations, done=state.generation) as advance:
        for step in evolution:
            scores = fitness(step)  # stitched, trained and scored; the ranks share the candidates out
            evolution.tell(step, scores)  # the first rank decides
            if step.last:
                state = evolution.state
                line = evolution.line | {"changes": changes(space, step.parent, state.parent)}
                if check and config.check_every and state.generation % config.check_every == 0 and ranks.is_first():
                    line["held_out"] = check(state.parent)
                record.save(state, line)
                advance(f"KL {state.kl:.4f}")
    log.info("Search: %d generations, KL %.4f on the tokens of the last selection.", state.generation, state.kl)
    return state


def first_parent(
    uniform: Genome,
    budget: Budget,
    assembler: Assembler,
    pools: Pools,
    config: SearchConfig,
    seed: int,
    record: SearchRecord,
    check: Check | None = None,
) -> Genome:
    """Where a search begins, as `search.start` says; arguments as of `search`.

    Args:
        uniform: the same share of every module gone.
        assembler: builds candidates.
        pools: the text.
    """
    genome, checked = uniform, check if config.check_every else None
    begun = StartRecord(record.folder / "start.json", assembler.space, record.identity, checked)
    if config.start == "linearized":
        measures = ModelMeasures(assembler, pools, config, seed)
        genome = linearized_start(uniform, assembler.space.present, budget, measures, config.start_rounds, begun)
    begun.end(config.start, genome)
    return genome


def diverse_founders(
    budget: Budget, assembler: Assembler, pools: Pools, config: SearchConfig, seed: int, parent: Genome
) -> list[Genome]:
    """Genomes of other kinds than the first parent, by costs linearized there; arguments as of `first_parent`."""
    measures = ModelMeasures(assembler, pools, config, seed)
    estimate = measures.estimate(parent, 0.0, config.start_rounds)
    return ranks.broadcast([*diverse(estimate.costs, budget, assembler.space.ladders).values()])
