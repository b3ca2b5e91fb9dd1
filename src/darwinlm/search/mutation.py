"""Level-switch mutation (arXiv 2502.07780, section 3.4; EvoPress, arXiv 2410.14649)."""

from __future__ import annotations

import random
from collections.abc import Callable

from darwinlm.database.levels import Kind
from darwinlm.genome import Genome, Space
from darwinlm.target.budget import Budget

Mutation = Callable[[Genome, int, Space, int, random.Random], list[Genome]]
"""Makes the children of a parent; arguments as in `offspring`."""
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

    def child() -> Genome:
        genome = parent
        for _ in range(min(rng.randint(1, switches), rng.randint(1, switches))):
            genome = level_switch(genome, space, rng)
        return genome

    return _different(parent, count, child)


def _different(parent: Genome, count: int, draw: Callable[[], Genome]) -> list[Genome]:
    """Up to `count` genomes that differ from the parent and each other; drawing ends where no new ones come."""
    children: list[Genome] = []
    for _ in range(count * ATTEMPTS):
        if len(children) == count:
            break
        child = draw()
        if child != parent and child not in children:
            children.append(child)
    return children


def offspring_within(
    parent: Genome, count: int, space: Space, switches: int, rng: random.Random, *, budget: Budget
) -> list[Genome]:
    """The same under a budget: a switch is between any two modules, whatever their kinds, and then repaired.

    Every child is within every limit and full (`Budget.is_full`), so it may differ from the parent in more modules than
    those that switched: an MLP's step is worth several of attention.
    """

    def child() -> Genome:
        levels, moved = list(parent), set[int]()
        for _ in range(min(rng.randint(1, switches), rng.randint(1, switches))):
            down = [i for i, level in enumerate(levels) if level > budget.lowest[i]]
            up = [i for i, ladder in enumerate(space.ladders) if levels[i] < ladder.top and down not in ([], [i])]
            if not up:
                break
            receiver = rng.choice(up)
            donor = rng.choice([i for i in down if i != receiver])
            levels[receiver] += 1
            levels[donor] -= 1
            moved |= {receiver, donor}
        return budget.repair(tuple(levels), rng.choice, tuple(moved))

    return _different(parent, count, child)
