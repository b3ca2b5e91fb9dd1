"""Level-switch mutation (arXiv 2502.07780, section 3.4; EvoPress, arXiv 2410.14649)."""

from __future__ import annotations

import random

from darwinlm.database.levels import Kind
from darwinlm.genome import Genome, Space

ATTEMPTS = 100
"""Failed draws per wanted child before the space is taken to hold no more new ones."""


def level_switch(genome: Genome, space: Space, rng: random.Random) -> Genome:
    """One module of a kind goes up a step and another of the same kind goes down a step.

    The kind is drawn in proportion to its modules; the kind's sum of levels is conserved. A kind without such a pair
    is never drawn; where none has one, the genome comes back as it is.
    """
    pairs: dict[Kind, tuple[list[int], list[int]]] = {kind: _movable(genome, space, kind) for kind in space.kinds}
    weights: dict[Kind, int] = {
        kind: len(space.members(kind)) for kind, (up, down) in pairs.items() if len(set(up + down)) > 1 and up and down
    }
    if not weights:
        return genome
    (kind,) = rng.choices(list(weights), list(weights.values()))
    up, down = pairs[kind]
    receiver = rng.choice([i for i in up if set(down) - {i}])
    donor = rng.choice([i for i in down if i != receiver])
    levels = list(genome)
    levels[receiver] += 1
    levels[donor] -= 1
    return tuple(levels)


def _movable(genome: Genome, space: Space, kind: Kind) -> tuple[list[int], list[int]]:
    members = space.members(kind)
    return [i for i in members if genome[i] < space.ladders[i].top], [
        i for i in members if genome[i] > space.ladders[i].present
    ]


def offspring(parent: Genome, count: int, space: Space, switches: int, rng: random.Random) -> list[Genome]:
    """Up to `count` different children, none equal to the parent; fewer where the space holds no more.

    A child is min(u1, u2) level switches away, with u1 and u2 drawn from 1 to `switches`.
    """
    children: list[Genome] = []
    for _ in range(count * ATTEMPTS):
        if len(children) == count:
            break
        child = parent
        for _ in range(min(rng.randint(1, switches), rng.randint(1, switches))):
            child = level_switch(child, space, rng)
        if child != parent and child not in children:
            children.append(child)
    return children
