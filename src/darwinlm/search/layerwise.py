"""The allocation of least layer-wise error within limits: what the database alone can say (ZipLM, arXiv 2302.04089)."""

from __future__ import annotations

from darwinlm.genome import Genome
from darwinlm.search.allocation import FORBIDDEN, cheapest
from darwinlm.target.budget import Budget, Step

PRICE_UNITS = 1 << 13
"""What a whole budget is divided into for the dynamic programme."""


def least_error(errors: list[list[float]], budget: Budget) -> Genome:
    """The least sum of errors within limits in parameters, bytes, measured time or steps: of one limit the least of all.

    Several limits are weighed against each other, alone and together; the best genome that keeps all of them is taken.

    Args:
        errors: (modules, levels).
        budget: that can be kept.
    """
    gone = budget.tops()
    closed = [[FORBIDDEN] * low + row[low:] for low, row in zip(budget.lowest, errors)]

    def least(steps: list[Step]) -> Step:
        return min(steps, key=lambda step: (errors[step[0]][step[2]] - errors[step[0]][step[1]], step))

    found = [budget.repair(cheapest(closed, prices, most), least) for prices, most in priced(gone, budget)]
    if len(budget.limits) == 1:
        (limit,) = budget.limits
        found.append(cheapest(closed, limit.costs, limit.most - limit.base))
    return min(found, key=lambda genome: (sum(row[level] for row, level in zip(errors, genome)), genome))


def priced(genome: Genome, budget: Budget) -> list[tuple[list[list[int]], int]]:
    """Prices of levels and what they may sum to, in whole units: of each limit alone, and of all together.

    A genome that keeps every limit keeps any weighted sum of them; the repair sees to the rest. The sum counts from where
    the genome stands, so that rounding does not forbid what is there.
    """
    limits = budget.limits
    alone = [[float(i == j) for j in range(len(limits))] for i in range(len(limits))]
    together = [[1 / len(limits)] * len(limits)] if len(limits) > 1 else []
    found = []
    for weights in alone + together:
        parts = [weight * PRICE_UNITS / max(l.most - l.base, 1) for weight, l in zip(weights, limits)]
        prices = [
            [round(sum(p * c for p, c in zip(parts, options))) for options in zip(*(l.costs[module] for l in limits))]
            for module in range(len(genome))
        ]
        spent = sum(row[level] for row, level in zip(prices, genome))
        left = sum(part * room for part, room in zip(parts, budget.headroom(genome)))
        found.append((prices, spent + int(left)))
    return found
