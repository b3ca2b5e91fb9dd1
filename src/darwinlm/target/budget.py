"""Budgets that a genome must keep, and the repair that brings any genome within all of them, and up to them.

A quantity is a part that is always there and a part of each module's level, in whole units (parameters, bytes, picoseconds,
steps), so sums are exact. What is gone costs nothing; in between nothing is assumed, not even that less costs less: a
measured time need not fall with the width.

Letters: M = modules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from darwinlm.database.levels import Kind
from darwinlm.genome import Genome, Space

Step = tuple[tuple[int, int, int], ...]
"""Modules that move together, one unless the target's shape says otherwise: of each (module, the level that it leaves, the
level that it goes to)."""
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
    """(M, levels): what a module adds at a level; at least 0, and 0 at the last level, unless it may not go."""

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
    formats: int = field(default=1, kw_only=True)
    """Formats of every level but the last. Where there are several, levels are rungs (`Ladder.stored_in`): the limits have
    a cost for each, and a step is to the same format of the next level, or to the next format."""

    def exchanges(self) -> tuple[tuple[int, ...], ...]:
        """Modules that may give to each other: those that spend the same limits."""
        spends: dict[tuple[bool, ...], list[int]] = {}
        for module in range(len(self.lowest)):
            spends.setdefault(tuple(any(limit.costs[module]) for limit in self.limits), []).append(module)
        return tuple(map(tuple, spends.values()))

    def tops(self) -> Genome:
        """The last level of every module."""
        return tuple(len(row) - 1 for row in self.limits[0].costs) if self.limits else ()

    def headroom(self, genome: Genome) -> tuple[int, ...]:
        """What each limit has left; negative where it is broken."""
        return tuple(limit.most - limit.spent(genome) for limit in self.limits)

    def within(self, genome: Genome) -> bool:
        """Whether a genome keeps every limit."""
        return all(left >= 0 for left in self.headroom(genome))

    def smallest(self) -> Genome:
        """The least that can be left."""
        return self.tops()

    def level(self, rung: int) -> int:
        """The level of a rung."""
        return rung // self.formats

    def at_share(self, share: float, place: int = 0) -> Genome:
        """The same share of every module gone, to the whole step toward dense; 1: the smallest. `place`: the format."""
        found = []
        for low, top in zip(self.lowest, self.tops(), strict=True):
            level = self.level(low) + int(share * self.level(top) + 1e-9)
            found.append(min(top, max(low, level * self.formats + place)))
        return tuple(found)

    def beside(self, module: int, rung: int, way: int) -> list[int]:
        """Open levels a step from one of a module: -1 is toward dense, 1 away. None that costs more than now, and alone more than
        there is."""
        top, each = len(self.limits[0].costs[module]) - 1 if self.limits else rung, self.formats
        if way < 0:
            found = [rung - 1] if rung == top else [rung - each, *([rung - 1] if rung % each else [])]
        else:
            found = [] if rung == top else [min(rung + each, top), *([rung + 1] if rung % each < each - 1 else [])]
        return [new for new in found if self.lowest[module] <= new and not self._bursts(module, rung, new)]

    def _bursts(self, module: int, rung: int, new: int) -> bool:
        costs = ((limit, limit.costs[module]) for limit in self.limits)
        return any(row[new] > row[rung] and limit.base + row[new] > limit.most for limit, row in costs)

    def wider(self, genome: Genome) -> list[Step]:
        """Steps toward dense: one level, or one format, of one module."""
        if self.formats == 1:
            return [((i, level, level - 1),) for i, level in enumerate(genome) if level > self.lowest[i]]
        return [((i, rung, new),) for i, rung in enumerate(genome) for new in self.beside(i, rung, -1)]

    def narrower(self, genome: Genome) -> list[Step]:
        """Steps away from dense: one level, or one format, of one module."""
        if self.formats == 1:
            return [((i, level, level + 1),) for i, (level, top) in enumerate(zip(genome, self.tops())) if level < top]
        return [((i, rung, new),) for i, rung in enumerate(genome) for new in self.beside(i, rung, 1)]

    def affordable(self, genome: Genome) -> list[Step]:
        """Steps toward dense after which a genome is within every limit."""
        room = self.headroom(genome)
        return [s for s in self.wider(genome) if all(-_saving(l, s) <= left for l, left in zip(self.limits, room))]

    def is_full(self, genome: Genome) -> bool:
        """Whether a genome is within every limit, and needlessly small nowhere."""
        return self.within(genome) and not self.affordable(genome)

    def repair(self, genome: Genome, pick: Pick, last: Sequence[int] = ()) -> Genome:
        """A full genome near `genome`: steps away from dense until every limit is kept, then steps back while one fits.

        Both parts end: each step moves in one direction, and the smallest model that may be reached keeps all limits.

        Args:
            genome: of open levels.
            pick: chooses the steps.
            last: modules that move only where no other can.
        """
        while not self.within(genome):
            genome = stepped(genome, pick(_unless(last, self._cuts(genome))))
        while steps := self.affordable(genome):
            genome = stepped(genome, pick(_unless(last, steps)))
        return genome

    def _cuts(self, genome: Genome) -> list[Step]:
        """Steps away from dense: those that suffice, else those that help, else all."""
        room, steps = self.headroom(genome), self.narrower(genome)
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
    return [step for step in steps if not any(module in last for module, _, _ in step)] or steps


def _saving(limit: Limit, step: Step) -> int:
    saved = 0  # a plain loop: mutations spend their time here
    for module, old, new in step:
        saved += limit.costs[module][old] - limit.costs[module][new]
    return saved


def stepped(genome: Genome, step: Step) -> Genome:
    """A genome after a step."""
    levels = list(genome)
    for module, _, level in step:
        levels[module] = level
    return tuple(levels)


def level_limits(space: Space, totals: Mapping[Kind, int]) -> tuple[Limit, ...]:
    """A level target as limits: of each kind, the steps toward gone that are not taken.

    Args:
        space: the modules.
        totals: sum of levels that each kind must have at least.
    """
    return tuple(
        Limit(
            f"{kind} steps",
            sum(ladder.top for ladder in space.ladders if ladder.kind == kind) - total,
            0,
            tuple(tuple((l.top - level) * (l.kind == kind) for level in range(l.top + 1)) for l in space.ladders),
        )
        for kind, total in totals.items()
    )


def level_budget(space: Space, share: float) -> Budget:
    """`share` of every kind of module is to go, to the nearest step."""
    return Budget(level_limits(space, space.targets(share)), space.present)


def uniform(budget: Budget, rng: random.Random) -> Genome:
    """The largest model within a budget of whose modules the same share goes, filled up to the limits at random; where there
    are several formats, all in the largest in which nothing must go, or in the smallest.

    Args:
        budget: that can be kept; of a model that is pruned already, the same share of every module goes further.
        rng: spreads what is no whole step.
    """
    tops = budget.tops()
    order = rng.sample(range(len(tops)), len(tops))
    rank = {module: place for place, module in enumerate(order)}
    genome, last = budget.lowest, budget.formats - 1
    steps = {budget.level(top) for top in tops} - {0}
    shares = sorted({level / top for top in steps for level in range(top + 1)})
    for share, place in [*((0.0, place) for place in range(last)), *((share, last) for share in shares)]:
        genome = budget.at_share(share, place)
        if budget.within(genome):
            break

    def evenly(options: list[Step]) -> Step:
        def gone(step: Step) -> tuple[float, int]:
            module, level, _ = step[0]
            return (level - budget.lowest[module]) / tops[module], rank[module]

        return max(options, key=gone)

    return budget.repair(genome, evenly)
