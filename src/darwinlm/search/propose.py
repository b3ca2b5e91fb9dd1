"""Allocations that are cheapest if the costs of single modules add up: exactly, within every limit.

Letters: M = modules, G = genomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from darwinlm.database.levels import Kind, Ladder
from darwinlm.genome import Genome
from darwinlm.target.budget import Budget, Step
from darwinlm.target.stock import StockBudget

FORBIDDEN = math.inf
"""The cost of a level that a module must not take."""
RADII, PARTS = (1, 2, 1 << 30), (1, 2, 4)
"""Levels that a module may move, and parts of the modules that may, in proposals."""
SHAPES = 12
"""Proposals in the stock shape."""
NODES = 20_000
"""Most nodes of the branch and bound; the best allocation found by then is taken."""
DOUBT = 0.5
"""Standard deviation of a cost that is only estimated, as a part of it."""
NOISE = 0.01
"""Standard deviation of what does not add up, as a part of the KL."""
DEARER: dict[str, Callable[[bool, float], float]] = {
    "attention x 1/4": lambda attention, depth: 0.25 if attention else 1.0,
    "attention x 1/2": lambda attention, depth: 0.5 if attention else 1.0,
    "attention x 2": lambda attention, depth: 2.0 if attention else 1.0,
    "attention x 4": lambda attention, depth: 4.0 if attention else 1.0,
    "ends dear": lambda attention, depth: 1 + 6 * abs(depth - 0.5),
    "middle dear": lambda attention, depth: 4 - 6 * abs(depth - 0.5),
    "front dear": lambda attention, depth: 4 - 3 * depth,
    "end dear": lambda attention, depth: 1 + 3 * depth,
}
"""(whether attention, depth from 0 to 1) -> what a module's costs are multiplied by, in diverse allocations."""
WHOLE: dict[str, tuple[Kind, ...]] = {
    "whole modules": ("attention", "mlp"),
    "whole attentions": ("attention",),
    "whole MLPs": ("mlp",),
}
"""Kinds whose modules can only stay or go in a diverse allocation."""

Costs = Sequence[Sequence[float]]
"""(M, levels): what a level of a module adds to the KL, in nats; `FORBIDDEN` where it must not be."""


def allocate(
    costs: Costs, budget: Budget, at: Genome | None = None, changes: int | None = None, *, elsewhere: bool = False
) -> Genome | None:
    """The open levels of least total cost within every limit: a 0-1 programme, solved exactly by HiGHS, or, in the stock
    shape, the best of all pairs of widths.

    Args:
        costs: of every level.
        budget: that can be kept.
        at: where the modules stand, for `changes`.
        changes: modules that may leave `at`; by default all.
        elsewhere: at least two modules must leave `at`, so that it is the best of all others.

    Returns:
        A full genome (`Budget.is_full`), which a repair may have brought back to `at`; None where none is allowed.
    """
    if isinstance(budget, StockBudget):
        if changes is not None:
            raise ValueError("in the stock shape all modules of a kind change together")
        return next(iter(of_each_shape(costs, budget)), None)
    places = [
        (module, level)
        for module, (row, low) in enumerate(zip(costs, budget.lowest, strict=True))
        for level in range(low, len(row))
        if row[level] < FORBIDDEN
    ]
    rows: list[tuple[list[float], float, float]] = []
    for module in range(len(costs)):
        rows.append(([float(place[0] == module) for place in places], 1.0, 1.0))
    for limit in budget.limits:
        most = max(1, limit.most - limit.base)
        rows.append(
            (
                [limit.costs[module][level] / most for module, level in places],
                -math.inf,
                (limit.most - limit.base) / most,
            )
        )
    if at is not None and changes is not None:
        rows.append(([float(at[module] == level) for module, level in places], len(costs) - changes, math.inf))
    if at is not None and elsewhere:
        rows.append(([float(at[module] == level) for module, level in places], -math.inf, len(costs) - 2))
    if not places:
        return () if not costs else None
    matrix, low, high = (np.array(each) for each in zip(*rows))
    prices = np.array([costs[module][level] for module, level in places])
    found = milp(
        prices / max(np.abs(prices).max(), 1e-300),
        integrality=np.ones(len(places)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(csr_array(matrix), low, high),  # type: ignore[arg-type]
        options={"mip_rel_gap": 1e-9, "node_limit": NODES},
    )
    if found.x is None:
        return None
    genome = list(budget.lowest)
    for (module, level), taken in zip(places, found.x):
        if taken > 0.5:
            genome[module] = level

    def least(steps: list[Step]) -> Step:
        return min(steps, key=lambda step: (_rise(costs, step), step))

    return budget.repair(tuple(genome), least)  # sums are exact there, and what is left over is used


def _rise(costs: Costs, step: Step) -> float:
    if any(costs[module][new] == FORBIDDEN for module, _, new in step):
        return FORBIDDEN
    return sum(costs[module][new] - costs[module][old] for module, old, new in step)


def of_each_shape(costs: Costs, budget: StockBudget) -> list[Genome]:
    """For every pair of widths the full genome of least total cost, if there is one; the cheapest first.

    All layers spend alike, so as many stay as fit: those whose loss would cost most. Exact, and without a solver.
    """
    tops, found = budget.tops(), dict[Genome, float]()
    for levels, count in budget.shapes():
        losses = {
            layer: sum(costs[m][tops[m]] for m in modules) - sum(costs[m][level] for m, level in zip(modules, levels))
            for layer, modules in enumerate(budget.layers)
            if budget.may_keep(layer, levels) and all(costs[m][level] < FORBIDDEN for m, level in zip(modules, levels))
        }
        kept = sorted(losses, key=lambda layer: (-losses[layer], layer))[:count]
        genome = budget.genome(levels, kept)
        total = sum(row[level] for row, level in zip(costs, genome, strict=True))
        if budget.is_full(genome) and total < FORBIDDEN:
            found[genome] = total
    return sorted(found, key=lambda genome: (found[genome], genome))


@dataclass(frozen=True)
class Estimate:
    """What levels cost where a genome stands: estimated module by module, corrected by every genome scored since."""

    genome: Genome
    kl: float
    costs: Costs
    """0 at the genome's own levels."""
    doubts: Costs
    """Standard deviations of the costs."""

    def corrected(self, scores: dict[Genome, float]) -> Estimate:
        """The same after genomes were scored as a whole: Bayesian linear regression on one-hot levels.

        Args:
            scores: genome -> KL, in nats, on the tokens of `kl`.
        """
        seen = [genome for genome in scores if genome != self.genome and self._known(genome)]
        if not seen:
            return self
        modules = range(len(self.genome))
        variances = [[doubt**2 if math.isfinite(doubt) else 0.0 for doubt in row] for row in self.doubts]
        predicted = np.array([self.predicted(genome) for genome in seen])
        missing = np.array([scores[genome] for genome in seen]) - predicted
        shared = np.array([[sum(variances[m][a[m]] for m in modules if a[m] == b[m]) for b in seen] for a in seen])
        noise = (NOISE * max(self.kl, *(scores[genome] for genome in seen))) ** 2
        weights = np.linalg.solve(shared + noise * np.eye(len(seen)), missing)
        costs = [list(row) for row in self.costs]
        for weight, genome in zip(weights, seen):
            for module in modules:
                costs[module][genome[module]] += float(weight) * variances[module][genome[module]]
        return Estimate(self.genome, self.kl, costs, self.doubts)

    def predicted(self, genome: Genome) -> float:
        """The KL of a genome if costs add up."""
        return self.kl + sum(row[level] for row, level in zip(self.costs, genome, strict=True))

    def _known(self, genome: Genome) -> bool:
        return math.isfinite(self.predicted(genome))


def proposals(estimate: Estimate, budget: Budget) -> list[Genome]:
    """Allocations that are cheapest if costs add up: by steps of one or two levels and any, in any format, of all modules
    and of few; and of each the best that is elsewhere, since costs that see nothing better where they stand may be wrong.

    No module goes in them that is not gone already, since its absence is not to be told from a distance; but in one more
    proposal any may: its score tells what that really costs.

    Args:
        estimate: of the levels' costs.
        budget: that every proposal keeps.
    """
    genome, tops, modules = estimate.genome, budget.tops(), len(estimate.genome)
    if isinstance(budget, StockBudget):
        return [each for each in of_each_shape(estimate.costs, budget) if each != genome][:SHAPES]
    found = [allocate(estimate.costs, budget)]
    for radius in RADII:
        near = [
            [
                cost
                if abs(budget.level(rung) - budget.level(now)) <= radius and rung in (now, *range(top))
                else FORBIDDEN
                for rung, cost in enumerate(row)
            ]
            for row, now, top in zip(estimate.costs, genome, tops)
        ]
        found += [allocate(near, budget, genome, modules // part) for part in PARTS if modules // part > 1]
        found.append(allocate(near, budget, genome, elsewhere=True))
    return list(dict.fromkeys(each for each in found if each is not None and each != genome))


def diverse(costs: Costs, budget: Budget, ladders: Sequence[Ladder]) -> dict[str, Genome]:
    """Different allocations of different kinds, by name: each the cheapest if some modules were dearer, or could only stay or go.

    Args:
        costs: of the levels.
        budget: that every one keeps.
        ladders: of the modules.
    """
    last = max((ladder.layer for ladder in ladders), default=0) or 1
    found: dict[str, Costs] = {}
    for name, factor in DEARER.items():
        factors = [factor(ladder.kind == "attention", ladder.layer / last) for ladder in ladders]
        found[name] = [[factor * cost for cost in row] for factor, row in zip(factors, costs)]
    for name, kinds in WHOLE.items():
        found[name] = [
            [
                cost
                if ladder.kind not in kinds or budget.level(rung) == budget.level(low) or rung == top
                else FORBIDDEN
                for rung, cost in enumerate(row)
            ]
            for ladder, row, low, top in zip(ladders, costs, budget.lowest, budget.tops())
        ]
    genomes: dict[str, Genome] = {}
    for name, bent in found.items():
        genome = allocate(bent, budget)
        if genome is not None and genome not in genomes.values():
            genomes[name] = genome
    return genomes
