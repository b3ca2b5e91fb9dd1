"""What single modules cost where a genome stands: the KL of untrained candidates that differ from it in one level."""

from __future__ import annotations

from collections.abc import Sequence

from darwinlm.genome import Genome, Space
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import progress
from darwinlm.search.allocation import FORBIDDEN
from darwinlm.search.screen import Screen


def scores(genomes: Sequence[Genome], screen: Screen, title: str) -> list[float]:
    """The KL of each, the work shared out to the ranks."""
    own, found = ranks.mine(list(genomes)), []
    with progress(title, len(own)) as advance:
        for genome in own:
            found.append(screen(genome))
            advance(f"KL {found[-1]:.4f}")
    return ranks.in_turn(ranks.gathered(found))


def sensitivities(
    genome: Genome, kl: float, space: Space, screen: Screen, radius: int | None, lowest: Genome
) -> list[list[float]]:
    """(modules, levels): what a level of one module alone adds to the KL; `FORBIDDEN` where it was not measured.

    Args:
        genome: where the modules stand; its own levels add nothing.
        kl: of the genome.
        space: the modules.
        screen: scores untrained candidates.
        radius: steps up and down that are measured; None for all.
        lowest: lowest open level of every module.
    """
    near = [
        (module, level)
        for module, ladder in enumerate(space.ladders)
        for level in range(lowest[module], ladder.top + 1)
        if 0 < abs(level - genome[module]) <= (radius or ladder.top)
    ]
    moved = [(*genome[:module], level, *genome[module + 1 :]) for module, level in near]
    costs = [[FORBIDDEN] * (ladder.top + 1) for ladder in space.ladders]
    for module, level in enumerate(genome):
        costs[module][level] = 0.0
    for (module, level), score in zip(near, scores(moved, screen, "Start, one module at a time")):
        costs[module][level] = score - kl
    return costs
