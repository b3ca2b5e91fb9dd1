"""Where a search under a budget begins: a genome refined by what each module's levels cost when measured there.

The uniform genome, or that of least layer-wise error, whichever has the lower KL. As `search.start`, in real quantities:
the sensitivities of single levels give the allocation that is cheapest if they add up and whose prices fit the budget. A
fee for every module that changes makes proposals that change few. Each is repaired to every limit and measured; the best
becomes the genome, and so on until none is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.genome import Genome, Space
from darwinlm.search.allocation import cheapest
from darwinlm.search.fitness import Teacher
from darwinlm.search.layerwise import least_error, priced
from darwinlm.search.refinement import Screens, Seen, refine, screens, unseen
from darwinlm.target.budget import Budget, Step

FEES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Fees for a changed module, as quantiles of what single steps cost or win."""


def first_parent_within(
    uniform: Genome,
    budget: Budget,
    assembler: Assembler,
    teacher: Teacher,
    config: SearchConfig,
    seed: int,
    dtype: torch.dtype,
    seen: Seen = unseen,
) -> Genome:
    """The genome that a search under a budget begins with, as `search.start` says.

    Args:
        uniform: within the budget.
        budget: that every genome keeps.
        assembler: gives the layers of candidates.
        teacher: the dense model on the pool that they are scored on.
        config: of the search.
        seed: of the choice of blocks.
        dtype: arithmetic of the forward passes.
        seen: is shown every genome on the way.
    """
    if config.start == "uniform":
        return uniform
    errors = [assembler.database.modules[ladder.name].relative_errors for ladder in assembler.space.ladders]
    starts = [uniform, least_error(errors, budget)]
    measures = screens(assembler, teacher, config, seed, dtype)
    return measured_start_within(starts, budget, assembler.space, measures, config.start_rounds, seen)


def measured_start_within(
    starts: Sequence[Genome], budget: Budget, space: Space, measures: Screens, rounds: int, seen: Seen = unseen
) -> Genome:
    """The best genome that refining the best start finds; all that it measures as a whole keep the budget.

    Args:
        starts: of which one is refined.
        budget: that every genome keeps.
        space: the modules.
        measures: score untrained candidates.
        rounds: most refinements.
        seen: is shown every genome on the way.
    """

    def propose(genome: Genome, costs: list[list[float]]) -> set[Genome]:
        return proposals_within(genome, budget, costs)

    return refine(starts, space, measures, rounds, budget.lowest, propose, seen)


def proposals_within(genome: Genome, budget: Budget, costs: list[list[float]]) -> set[Genome]:
    """Full genomes that are cheap if costs add up, with few changes and with many.

    Args:
        genome: where the modules stand, within the budget.
        budget: that every proposal keeps.
        costs: (modules, levels), 0 where they stand; `FORBIDDEN` where they must not go.
    """
    sizes = sorted(abs(cost) for row in costs for cost in row if cost and math.isfinite(cost))
    fees = {sizes[int(share * (len(sizes) - 1))] if share else 0.0 for share in FEES} if sizes else set()

    def least(steps: list[Step]) -> Step:
        return min(steps, key=lambda step: (_difference(costs[step[0]], step), step))

    found: set[Genome] = set()
    for prices, most in priced(genome, budget):
        for fee in sorted(fees):
            charged = [[cost + fee * (cost != 0) for cost in row] for row in costs]
            found.add(budget.repair(cheapest(charged, prices, most), least))
    return found - {genome}


def _difference(row: list[float], step: Step) -> float:
    _, old, new = step
    return row[new] - row[old] if math.isfinite(row[new]) and math.isfinite(row[old]) else math.inf
