"""Where the search begins: the uniform genome, refined by what each module's levels cost when measured there.

Modules interact more the more is gone, so sensitivities are measured at the genome itself, not at the dense model: the
KL of every single step up or down gives the allocation of the same budget that is cheapest if steps add up. Allocations
that change few or many modules are measured, the best becomes the genome, and so on until none is better.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.database.levels import Kind
from darwinlm.genome import Genome, Space
from darwinlm.search.allocation import allocate
from darwinlm.search.fitness import Teacher
from darwinlm.search.refinement import Screens, Seen, refine, screens, unseen

CHANGES = (2, 4, 6, 8, 12, 16, 24, 32)
"""Modules of a kind that a proposed allocation may change."""


def first_parent(
    uniform: Genome,
    assembler: Assembler,
    teacher: Teacher,
    config: SearchConfig,
    seed: int,
    dtype: torch.dtype,
    seen: Seen = unseen,
) -> Genome:
    """The genome that a search begins with, as `search.start` says.

    Args:
        uniform: at the target.
        assembler: gives the layers of candidates.
        teacher: the dense model on the pool that they are scored on.
        config: of the search.
        seed: of the choice of blocks.
        dtype: arithmetic of the forward passes.
        seen: is shown every genome on the way.
    """
    if config.start == "uniform":
        return uniform
    measures = screens(assembler, teacher, config, seed, dtype)
    return measured_start(uniform, assembler.space, measures, config.start_rounds, seen)


def measured_start(start: Genome, space: Space, measures: Screens, rounds: int, seen: Seen = unseen) -> Genome:
    """The best genome that refining `start` finds; each kind keeps its sum of levels.

    Args:
        start: where the refinement begins.
        space: the modules.
        measures: score untrained candidates.
        rounds: most refinements.
        seen: is shown every genome on the way.
    """
    return refine(
        [start], space, measures, rounds, space.present, lambda genome, costs: _proposals(genome, space, costs), seen
    )


def _proposals(genome: Genome, space: Space, costs: list[list[float]]) -> set[Genome]:
    """Allocations that are cheapest if costs add up, with few changes and with many, of one kind and of all."""
    kinds = space.kinds
    found: set[Genome] = set()
    for changes in CHANGES:
        moved = {kind: _reallocated(genome, space, costs, kind, changes) for kind in kinds}
        for chosen in [kinds, *([kind] for kind in kinds)]:
            found.add(_merged(genome, (moved[kind] for kind in chosen)))
        if changes >= max((len(space.members(kind)) for kind in kinds), default=0):
            break
    return found - {genome}


def _reallocated(genome: Genome, space: Space, costs: list[list[float]], kind: Kind, changes: int) -> dict[int, int]:
    """{module: level} of one kind with the same sum of levels."""
    members = space.members(kind)
    levels = allocate([costs[i] for i in members], sum(genome[i] for i in members), changes)
    return dict(zip(members, levels or [genome[i] for i in members]))


def _merged(genome: Genome, changes: Iterable[dict[int, int]]) -> Genome:
    levels = list(genome)
    for change in changes:
        for module, level in change.items():
            levels[module] = level
    return tuple(levels)
