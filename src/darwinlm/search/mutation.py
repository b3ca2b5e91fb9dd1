"""Level-switch mutation (arXiv 2502.07780, section 3.4; EvoPress, arXiv 2410.14649)."""

from __future__ import annotations

import random

from darwinlm.genome import Genome
from darwinlm.target.budget import Budget
from darwinlm.target.stock import StockBudget

ATTEMPTS = 500
"""Draws in a row without a new child after which the budget is taken to allow no more."""


def level_switch(genome: Genome, budget: Budget, rng: random.Random) -> Genome:
    """One module goes up a step and another that it may exchange with (`Budget.exchanges`) goes down a step; a step is a
    level, or a format where there are several.

    Under a level target these are the modules of its kind, whose sum of levels is conserved. A group of modules is drawn
    in proportion to its size, one without such a pair never; where none has one, the genome comes back as it is. In the stock
    shape a layer or all modules of a kind move (`StockBudget.switch`).
    """
    if isinstance(budget, StockBudget):
        return budget.switch(genome, rng)
    tops = budget.tops()
    pairs: list[tuple[list[int], list[int]]] = []
    weights: list[int] = []
    for members in budget.exchanges():
        up = [i for i in members if genome[i] < tops[i]]
        down = [i for i in members if genome[i] > budget.lowest[i]]
        if len(set(up + down)) > 1 and up and down:
            pairs.append((up, down))
            weights.append(len(members))
    if not pairs:
        return genome
    ((up, down),) = rng.choices(pairs, weights)
    receiver = rng.choice([i for i in up if set(down) - {i}])
    donor = rng.choice([i for i in down if i != receiver])
    levels = list(genome)
    for module, way in ((receiver, 1), (donor, -1)):
        ways = budget.beside(module, genome[module], way)
        levels[module] = ways[0] if len(ways) == 1 else rng.choice(ways or [genome[module]])
    return tuple(levels)


def offspring(parent: Genome, count: int, budget: Budget, switches: int, rng: random.Random) -> list[Genome]:
    """Up to `count` different children, none equal to the parent; fewer where the budget allows no more.

    A child is min(u1, u2) level switches away, with u1 and u2 drawn from 1 to `switches`, and then repaired: it is within
    every limit and full. A switch keeps a level target, so there the repair changes nothing; a step of an MLP is worth
    several of attention in parameters, so a child may then differ from the parent in more modules than those that switched.
    """
    children: list[Genome] = []
    failed = 0
    while len(children) < count and failed < ATTEMPTS:
        child = parent
        for _ in range(min(rng.randint(1, switches), rng.randint(1, switches))):
            child = level_switch(child, budget, rng)
        moved = tuple(i for i, (old, new) in enumerate(zip(parent, child)) if old != new)
        child = budget.repair(child, rng.choice, moved)
        failed += 1
        if child != parent and child not in children:
            children.append(child)
            failed = 0
    return children
