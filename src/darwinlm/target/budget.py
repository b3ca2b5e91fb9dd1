"""Budgets that a genome must keep, and the repair that brings any genome within all of them, and up to them.

A quantity is a part that is always there and a part of each module's level, in whole units (parameters, bytes, picoseconds,
steps), so sums are exact. What is gone costs nothing; in between nothing is assumed, not even that less costs less: a
measured time need not fall with the width.

Letters: M = modules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from darwinlm.genome import Genome, Space

Step = tuple[int, int, int]
"""(module, the level that it leaves, the level that it goes to)."""
Pick = Callable[[list[Step]], Step]
"""Chooses one of several steps."""


@dataclass(frozen=True)
class Limit:
    """A quantity and the most that is allowed of it."""

    name: str
    """Such as `parameters`."""
    most: int
    base: int
    """What is there when every module is gone."""
    costs: tuple[tuple[int, ...], ...]
    """(M, levels): what a module adds at a level; at least 0, and 0 at the last level."""

    def spent(self, genome: Genome) -> int:
        """What a genome takes."""
        return self.base + sum(row[level] for row, level in zip(self.costs, genome, strict=True))


@dataclass(frozen=True)
class Budget:
    """Limits that all hold at once, over the levels that are open.

    A genome is *full* when it is within every limit and no module can go a step toward dense without breaking one.
    """

    limits: tuple[Limit, ...]
    lowest: Genome
    """The lowest open level of every module; the last level is open always."""

    def tops(self) -> Genome:
        """The last level of every module."""
        return tuple(len(row) - 1 for row in self.limits[0].costs)

    def headroom(self, genome: Genome) -> tuple[int, ...]:
        """What each limit has left; negative where it is broken."""
        return tuple(limit.most - limit.spent(genome) for limit in self.limits)

    def within(self, genome: Genome) -> bool:
        """Whether a genome keeps every limit."""
        return min(self.headroom(genome)) >= 0

    def affordable(self, genome: Genome) -> list[Step]:
        """Steps toward dense, one level of one module, after which a genome is within every limit."""
        room = self.headroom(genome)
        return [
            (i, level, level - 1)
            for i, level in enumerate(genome)
            if level > self.lowest[i]
            and all(l.costs[i][level - 1] - l.costs[i][level] <= left for l, left in zip(self.limits, room))
        ]

    def is_full(self, genome: Genome) -> bool:
        """Whether a genome is within every limit, and needlessly small nowhere."""
        return self.within(genome) and not self.affordable(genome)

    def repair(self, genome: Genome, pick: Pick, last: Sequence[int] = ()) -> Genome:
        """A full genome near `genome`: steps away from dense until every limit is kept, then steps back while one fits.

        Both parts end: each step moves one level in one direction, and with every module gone all limits are kept.

        Args:
            genome: of open levels.
            pick: chooses the steps.
            last: modules that move only where no other can.
        """
        while not self.within(genome):
            genome = _stepped(genome, pick(_unless(last, self._cuts(genome))))
        while steps := self.affordable(genome):
            genome = _stepped(genome, pick(_unless(last, steps)))
        return genome

    def _cuts(self, genome: Genome) -> list[Step]:
        """Steps away from dense: those that suffice, else those that help, else all."""
        room, tops = self.headroom(genome), self.tops()
        steps = [(i, level, level + 1) for i, level in enumerate(genome) if level < tops[i]]
        saved = {step: [_saving(limit, step) for limit in self.limits] for step in steps}
        enough = [s for s in steps if all(left + saving >= 0 for left, saving in zip(room, saved[s]))]
        helping = [s for s in steps if any(left < 0 < saving for left, saving in zip(room, saved[s]))]
        if enough:
            return self._least(enough, saved)
        return helping or steps

    def _least(self, steps: list[Step], saved: dict[Step, list[int]]) -> list[Step]:
        """The half of the steps that give away least, of the limit that is tightest in proportion."""
        most = [max(limit.most, 1) for limit in self.limits]
        waste = {step: max(saving / bound for saving, bound in zip(saved[step], most)) for step in steps}
        return sorted(steps, key=lambda step: (waste[step], step))[: (len(steps) + 1) // 2]


def _unless(last: Sequence[int], steps: list[Step]) -> list[Step]:
    return [step for step in steps if step[0] not in last] or steps


def _saving(limit: Limit, step: Step) -> int:
    module, old, new = step
    return limit.costs[module][old] - limit.costs[module][new]


def _stepped(genome: Genome, step: Step) -> Genome:
    module, _, level = step
    return (*genome[:module], level, *genome[module + 1 :])


def uniform_within(budget: Budget, space: Space, rng: random.Random) -> Genome:
    """The largest model within a budget whose modules are all at the same share of their ladders, filled up.

    Args:
        budget: that can be kept.
        space: the modules.
        rng: spreads what is no whole step.
    """
    tops, order = budget.tops(), rng.sample(range(len(space.ladders)), len(space.ladders))
    genome = budget.lowest
    for share in sorted({level / top for top in set(tops) for level in range(top + 1)}):
        genome = tuple(
            max(low, min(top, int(share * top + 1e-9))) for low, top in zip(budget.lowest, tops, strict=True)
        )
        if budget.within(genome):
            break
    rank = {module: place for place, module in enumerate(order)}

    def evenly(options: list[Step]) -> Step:
        return max(options, key=lambda step: (step[1] / tops[step[0]], rank[step[0]]))  # where most is gone

    return budget.repair(genome, evenly)
