"""A genome is one level per module, in a format where there are several; the space says which there are, and what a target
level means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darwinlm.database.levels import Ladder
from darwinlm.models.sites import Kind

Genome = tuple[int, ...]
"""One rung per module, in the order of `Space.ladders`: its level where there is one format."""


@dataclass(frozen=True)
class Space:
    """The modules of a model and their ladders."""

    ladders: tuple[Ladder, ...]

    @classmethod
    def of(cls, ladders: Sequence[Ladder], formats: Sequence[str] = ()) -> Space:
        """Of these modules, each in these formats, too."""
        return cls(tuple(ladder.stored_in(formats) for ladder in ladders) if formats else tuple(ladders))

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of module that occur."""
        return sorted({ladder.kind for ladder in self.ladders})

    def members(self, kind: Kind) -> list[int]:
        """Places of a kind's modules in a genome."""
        return [i for i, ladder in enumerate(self.ladders) if ladder.kind == kind]

    def totals(self, genome: Genome) -> dict[Kind, int]:
        """Sum of levels of each kind: what a level switch conserves."""
        levels = [ladder.level(rung) for ladder, rung in zip(self.ladders, genome, strict=True)]
        return {kind: sum(levels[i] for i in self.members(kind)) for kind in self.kinds}

    def targets(self, share: float) -> dict[Kind, int]:
        """Sum of levels of each kind when `share` of it is removed, to the nearest step."""
        return {kind: round(share * sum(self.ladders[i].top for i in self.members(kind))) for kind in self.kinds}

    @property
    def present(self) -> Genome:
        """The model as it is: level 0 everywhere where nothing was pruned before."""
        return tuple(ladder.present for ladder in self.ladders)

    @property
    def formats(self) -> tuple[str, ...]:
        """Those of every level, as in `Ladder.formats`."""
        return self.ladders[0].formats if self.ladders else ("",)

    def named(self, genome: Genome) -> dict[str, int]:
        """{module name: rung}."""
        return {ladder.name: rung for ladder, rung in zip(self.ladders, genome, strict=True)}

    def levels_of(self, genome: Genome) -> dict[str, int]:
        """{module name: level}."""
        return {ladder.name: ladder.level(rung) for ladder, rung in zip(self.ladders, genome, strict=True)}

    def formats_of(self, genome: Genome) -> dict[str, str]:
        """{module name: format}, of those that are in another one than the checkpoint's."""
        found = {ladder.name: ladder.format(rung) for ladder, rung in zip(self.ladders, genome, strict=True)}
        return {name: format_ for name, format_ in found.items() if format_}

    def genome_of(self, levels: Mapping[str, int], formats: Mapping[str, str]) -> Genome:
        """The genome of `levels_of` and `formats_of`."""
        return tuple(ladder.rung(levels[ladder.name], formats.get(ladder.name, "")) for ladder in self.ladders)

    def genome(self, named: dict[str, int]) -> Genome:
        """The genome of a {module name: rung} mapping."""
        return tuple(named[ladder.name] for ladder in self.ladders)


def is_valid(space: Space, genome: Sequence[int]) -> bool:
    """Whether every level is on its ladder, and open."""
    return len(genome) == len(space.ladders) and all(
        l.present <= level <= l.top for level, l in zip(genome, space.ladders)
    )
