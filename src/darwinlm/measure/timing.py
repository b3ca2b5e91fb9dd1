"""Times of rivals that take turns, so that whatever slows the machine down slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of what was measured in several rounds, in the unit of what was measured."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)


def now(device: torch.device) -> float:
    """Seconds, after all work that was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(call: Callable[[], object], device: torch.device) -> Callable[[], dict[str, float]]:
    """A rival for `interleaved` that is one call: its seconds are called `seconds`."""

    def rival() -> dict[str, float]:
        began = now(device)
        call()
        return {"seconds": now(device) - began}

    return rival


def interleaved(
    rivals: Sequence[Callable[[], Mapping[str, float]]],
    *,
    repeats: int,
    warmups: int = 1,
    advance: Callable[[str], None] = lambda note: None,
) -> list[dict[str, list[float]]]:
    """Call A B C A B C ...; every rival reports what it took, by name.

    Args:
        rivals: each returns seconds by name; what it does outside of its own clock does not count.
        repeats: rounds that count.
        warmups: rounds before them that do not.
        advance: called after every round.

    Returns:
        For each rival, in their order: name -> seconds of every round that counts.
    """
    taken: list[dict[str, list[float]]] = [{} for _ in rivals]
    for round_ in range(warmups + repeats):
        for rival, so_far in zip(rivals, taken):
            for name, seconds in rival().items():
                if round_ >= warmups:
                    so_far.setdefault(name, []).append(seconds)
        advance("")
    return taken


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the ratio round by round: what both rivals suffered in a round cancels out."""
    return Spread.of([above / below for above, below in zip(numerator, denominator, strict=True)])
