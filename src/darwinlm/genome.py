"""A genome is one level per module; the space says which levels there are and what a target level means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.database.levels import Ladder
from darwinlm.models.sites import Kind

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


def is_valid(space: Space, genome: Sequence[int]) -> bool:
    """Whether every level is on its ladder, and open."""
    return len(genome) == len(space.ladders) and all(
        l.present <= level <= l.top for level, l in zip(genome, space.ladders)
    )
