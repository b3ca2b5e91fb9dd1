"""Refine a genome by what each module's levels cost when measured there, round by round, until none is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from darwinlm.genome import Genome, Space
from darwinlm.runtime.progress import log
from darwinlm.search.screen import Screen
from darwinlm.search.sensitivity import scores, sensitivities

RADIUS = 1
"""Steps up and down that are measured of every module; in the first round all its levels are."""
GAIN = 0.01
"""Share of the KL that a round must win for another one to follow."""
Propose = Callable[[Genome, list[list[float]]], Iterable[Genome]]
"""Genomes that are cheap if the costs (modules, levels) measured at a genome add up."""


def refine(
    starts: Sequence[Genome], space: Space, screen: Screen, rounds: int, lowest: Genome, propose: Propose
) -> Genome:
    """The best genome that refining the best start finds.

    Args:
        starts: of which one is refined.
        space: the modules.
        screen: scores untrained candidates.
        rounds: most refinements.
        lowest: lowest open level of every module.
        propose: gives the genomes of a round that are measured as a whole.
    """
    measured = [screen.refer(start) for start in starts]
    first_kl, best_kl = measured[0], min(measured)
    best = starts[measured.index(best_kl)]
    if best != starts[-1]:
        screen.refer(best)
    for round_ in range(rounds):
        costs = sensitivities(best, best_kl, space, screen, RADIUS if round_ else None, lowest)
        proposals = sorted(propose(best, costs))
        found = scores(proposals, screen, f"Start, round {round_ + 1}, proposals")
        if not proposals or min(found) >= best_kl:
            break
        gain = 1 - min(found) / best_kl
        best = proposals[found.index(min(found))]
        best_kl = screen.refer(best)
        log.info("Start, round %d: KL %.4f.", round_ + 1, best_kl)
        if gain < GAIN:
            break
    log.info("Start: KL %.4f of the uniform genome, %.4f after its refinement.", first_kl, best_kl)
    return best
