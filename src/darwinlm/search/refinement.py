"""Refine a genome by what each module's levels cost when measured there, round by round, until none is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.genome import Genome, Space
from darwinlm.runtime.progress import log
from darwinlm.search.fitness import Targets, Teacher
from darwinlm.search.samples import draw
from darwinlm.search.screen import Screen
from darwinlm.search.sensitivity import scores, sensitivities

RADIUS = 1
"""Steps up and down that are measured of every module; in the first round all its levels are."""
COARSE = 4
"""Part of the tokens that the first round measures modules on: it has the most to measure and the least to tell apart."""
GAIN = 0.01
"""Share of the KL that a round must win for another one to follow."""
Propose = Callable[[Genome, list[list[float]]], Iterable[Genome]]
"""Genomes that are cheap if the costs (modules, levels) measured at a genome add up."""
Seen = Callable[[Genome, float], None]
"""Is shown every genome that a start stands on, and its KL."""


class Screens(NamedTuple):
    """What a start is measured with."""

    fine: Screen
    """Scores whole genomes, and single steps near the end."""
    coarse: Screen
    """Scores levels of single modules in the first round."""


def screens(assembler: Assembler, teacher: Teacher, config: SearchConfig, seed: int, dtype: torch.dtype) -> Screens:
    """Screens on `search.start_tokens` and on the first of them; arguments as of the search's fitness."""
    tokens = min(config.start_tokens, teacher.tokens.numel())
    drawn = (draw(teacher.tokens, count, seed, "start", 0, 0) for count in (tokens, max(2, tokens // COARSE)))
    return Screens(*(Screen(assembler, Targets(teacher, blocks), dtype) for blocks in drawn))


def unseen(genome: Genome, kl: float) -> None:
    """Looks away."""


def refine(
    starts: Sequence[Genome],
    space: Space,
    screens: Screens,
    rounds: int,
    lowest: Genome,
    propose: Propose,
    seen: Seen = unseen,
) -> Genome:
    """The best genome that refining the best start finds.

    Args:
        starts: of which one is refined.
        space: the modules.
        screens: score untrained candidates.
        rounds: most refinements.
        lowest: lowest open level of every module.
        propose: gives the genomes of a round that are measured as a whole.
        seen: is shown the best start and the genome of every round.
    """
    screen = screens.fine
    measured = [screen.refer(start) for start in starts]
    first_kl, best_kl = measured[0], min(measured)
    best = starts[measured.index(best_kl)]
    if best != starts[-1]:
        screen.refer(best)
    seen(best, best_kl)
    for round_ in range(rounds):
        if round_:
            costs = sensitivities(best, best_kl, space, screen, RADIUS, lowest)
        else:
            costs = sensitivities(best, screens.coarse.refer(best), space, screens.coarse, None, lowest)
        proposals = sorted(propose(best, costs))
        found = scores(proposals, screen, f"Start, round {round_ + 1}, proposals")
        if not proposals or min(found) >= best_kl:
            break
        gain = 1 - min(found) / best_kl
        best = proposals[found.index(min(found))]
        best_kl = screen.refer(best)
        seen(best, best_kl)
        log.info("Start, round %d: KL %.4f.", round_ + 1, best_kl)
        if gain < GAIN:
            break
    log.info("Start: KL %.4f of the uniform genome, %.4f after its refinement.", first_kl, best_kl)
    return best
