"""A genome is one level per module; the space says which levels there are and what a target level means."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.database.levels import Kind, Ladder
from darwinlm.errors import RequestError

Genome = tuple[int, ...]
"""One level per module, in the order of `Space.ladders`."""


@dataclass(frozen=True)
class Space:
    """The modules of a model and their ladders."""

    ladders: tuple[Ladder, ...]

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of module that occur."""
        return sorted({ladder.kind for ladder in self.ladders})

    def members(self, kind: Kind) -> list[int]:
        """Places of a kind's modules in a genome."""
        return [i for i, ladder in enumerate(self.ladders) if ladder.kind == kind]

    def totals(self, genome: Genome) -> dict[Kind, int]:
        """Sum of levels of each kind: what a level switch conserves."""
        return {kind: sum(genome[i] for i in self.members(kind)) for kind in self.kinds}

    def targets(self, share: float) -> dict[Kind, int]:
        """Sum of levels of each kind when `share` of it is removed, to the nearest step."""
        return {kind: round(share * sum(self.ladders[i].top for i in self.members(kind))) for kind in self.kinds}

    @property
    def present(self) -> Genome:
        """The model as it is: level 0 everywhere where nothing was pruned before."""
        return tuple(ladder.present for ladder in self.ladders)

    def named(self, genome: Genome) -> dict[str, int]:
        """{module name: level}."""
        return {ladder.name: level for ladder, level in zip(self.ladders, genome, strict=True)}

    def genome(self, named: dict[str, int]) -> Genome:
        """The genome of a {module name: level} mapping."""
        return tuple(named[ladder.name] for ladder in self.ladders)


def uniform_genome(space: Space, share: float, rng: random.Random) -> Genome:
    """Every module at `share` of its ladder; where that is no whole level, a random genome of that mean.

    The levels differ by at most one step from `share`, and each kind sums to `Space.targets`.
    """
    levels = [int(share * ladder.top + 1e-9) for ladder in space.ladders]
    for kind, target in space.targets(share).items():
        members = space.members(kind)
        short = target - sum(levels[i] for i in members)
        step = 1 if short > 0 else -1
        open_ended = [i for i in members if 0 <= levels[i] + step <= space.ladders[i].top]
        for i in rng.sample(open_ended, abs(short)):
            levels[i] += step
    return tuple(levels)


def grown_genome(space: Space, share: float, rng: random.Random) -> Genome:
    """Where a model that is pruned already is now, and what it lacks to `share`, spread at random positions.

    Gradual pruning (arXiv 2502.07780): every module that is not gone gets as many steps as any other, or one more, and
    each kind sums to `Space.targets`.
    """
    levels = list(space.present)
    for kind, target in space.targets(share).items():
        members = space.members(kind)
        short = target - sum(levels[i] for i in members)
        while short > 0:
            not_gone = [i for i in members if levels[i] < space.ladders[i].top]
            chosen = rng.sample(not_gone, min(short, len(not_gone)))
            for i in chosen:
                levels[i] += 1
            short -= len(chosen)
    return tuple(levels)


def require_open(space: Space, share: float) -> None:
    """Check that a model can still reach `share`: it is not there yet, and no kind of module is beyond it.

    Raises:
        RequestError: it cannot; says at what share each kind is.
    """
    targets, totals = space.targets(share), space.totals(space.present)
    at = {kind: totals[kind] / sum(space.ladders[i].top for i in space.members(kind)) for kind in space.kinds}
    listed = " and ".join(f"{value:.1%} of {kind}" for kind, value in at.items())
    if not any(space.present):
        return
    if any(targets[kind] < totals[kind] for kind in space.kinds) or targets == totals:
        raise RequestError(
            f"The model is pruned already, {listed} is gone, and the target is {share:.1%} of both. Nothing that is gone "
            f"comes back: raise target.level, so that it is more than {max(at.values()):.1%} of database.levels."
        )


def is_valid(space: Space, genome: Sequence[int]) -> bool:
    """Whether every level is on its ladder, and open."""
    return len(genome) == len(space.ladders) and all(
        l.present <= level <= l.top for level, l in zip(genome, space.ladders)
    )
