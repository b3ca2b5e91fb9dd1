"""The steps of a ladder, from numbers alone: units that are gone at each level, or experts that stay and how wide.

Experts of a layer are equally wide, since they are computed together, and never fewer than a token passes through.

Letters: E = experts, I = columns of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from darwinlm.config import DatabaseConfig
from darwinlm.errors import RequestError
from darwinlm.models.sites import Kind

Leaves = Literal["both", "experts", "columns"]
LEAST_STEPS, MOST_STEPS = 4, 20
"""Between these, the steps of a ladder are equal, whatever their number."""


def expert_rungs(
    experts: int, width: int, chosen: int, multiple: int, steps: int, leaves: Leaves
) -> tuple[tuple[int, int], ...]:
    """(experts, width) at each level, both never rising: level i of N keeps about 1 - i/N of all E I columns.

    Args:
        experts: E, before any pruning.
        width: I, a multiple of `multiple`.
        chosen: experts that a token passes through: where fewer would stay, their widths fall instead.
        multiple: widths are multiples of it.
        steps: N; levels that equal the one before are left out.
        leaves: whole experts, columns of each, or both in the same proportion.
    """
    rungs = [(experts, width)]
    for step in range(1, steps):
        share = 1 - step / steps
        part = {"experts": share, "columns": 1.0, "both": share**0.5}[leaves]
        count = min(rungs[-1][0], max(chosen, round(experts * part)))
        wide = multiple * max(1, round(experts * width * share / count / multiple))
        if leaves == "experts" and count > chosen:
            wide = width
        if (rung := (count, min(rungs[-1][1], wide))) != rungs[-1]:
            rungs.append(rung)
    return (*rungs, (0, 0))


def removed_counts(
    kind: Kind, columns: int, unit: int, units: int, config: DatabaseConfig, table: Sequence[int] | None
) -> list[int]:
    """Units of `unit` columns that are gone at each level; a module has `units` of them."""
    if table is not None:
        return _from_table(kind, columns, unit, table)
    if config.rounding == "equal":
        return equal_counts(units, config.levels)
    exact = columns / unit
    counts = [math.floor(i * exact / config.levels + 0.5) for i in range(config.levels)] + [units]  # eq. 5 and 6
    if len(set(counts)) < len(counts):
        raise RequestError(
            f"The {kind} of {units} units of {unit} columns has no {config.levels} different levels. "
            f"Lower database.levels to at most {columns // unit}, or use database.rounding equal."
        )
    return counts


def _from_table(kind: Kind, columns: int, unit: int, table: Sequence[int]) -> list[int]:
    increasing = all(a < b for a, b in pairwise(table))
    if not increasing or len(table) < 2 or table[0] != 0 or table[-1] != columns or any(c % unit for c in table):
        raise RequestError(
            f"database.{kind}_columns is {list(table)}; it must increase from 0 to {columns}, the columns of the model's "
            f"{kind} output matrix, in multiples of {unit}."
        )
    return [count // unit for count in table]


def equal_counts(units: int, asked: int) -> list[int]:
    """Units that are gone at each level: equal steps, or, where their number would be far from what is asked, nearly equal ones.

    Args:
        units: of a module.
        asked: steps.
    """
    steps = nearest_divisor(units, asked)
    if not min(asked, LEAST_STEPS) <= steps <= max(asked, MOST_STEPS):
        steps = min(asked, units)
    return [(2 * i * units + steps) // (2 * steps) for i in range(steps + 1)]


def nearest_divisor(units: int, asked: int) -> int:
    """The number of equal steps that `units` can be split into, nearest to the `asked` one; the larger of two."""
    divisors = [d for d in range(2, units + 1) if units % d == 0] or [1]
    return min(divisors, key=lambda d: (abs(d - asked), -d))
