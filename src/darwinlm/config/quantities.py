"""Numbers as people write them: `2.7B`, `350M`, `60%`, `8GB`, `2.0x`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["parameters", "memory", "speedup"]
_COUNTS: dict[str, float] = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_BYTES: dict[str, float] = {"": 1, "b": 1} | {
    f"{letter}{i}{b}": float((1024 if i else 1000) ** power)
    for power, letter in enumerate("kmgt", 1)
    for i, b in (("", ""), ("", "b"), ("i", "b"))
}
_FACTORS: dict[Unit, dict[str, float]] = {"parameters": _COUNTS, "memory": _BYTES, "speedup": {"": 1, "x": 1}}
_EXAMPLES: dict[Unit, str] = {
    "parameters": "2.7B, 350M, 2700000000, or 60% of the dense model's",
    "memory": "8GB, 750MB, 6GiB, or 60% of what the dense model takes",
    "speedup": "2.0x or 1.5",
}
_WRITTEN = re.compile(r"\s*(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?\s*([a-z%]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A number, or a share of what the dense model has."""

    value: float
    is_share: bool = False

    def of(self, dense: int) -> int:
        """The most that is allowed, in whole units.

        Args:
            dense: what the dense model has.
        """
        return math.floor(self.value * dense) if self.is_share else math.floor(self.value)


def quantity(written: str | float, unit: Unit) -> Quantity:
    """Read a quantity.

    Args:
        written: as it was typed.
        unit: what it counts: parameters, bytes, or how many times faster.

    Raises:
        ValueError: it is none, or an impossible one; the message says what was typed and what can be.
    """
    matched = _WRITTEN.fullmatch(str(written))
    letters = matched.group(3).lower() if matched else ""
    factors = _FACTORS[unit] | ({"%": 0.01} if unit != "speedup" else {})
    if matched is None or letters not in factors:
        raise ValueError(f"is '{written}', which cannot be read; write it like {_EXAMPLES[unit]}")
    number = float(matched.group(1).replace("_", "") + (matched.group(2) or ""))
    found = Quantity(round(number * factors[letters], 9), letters == "%")
    if found.is_share and not 0 < found.value < 1:
        raise ValueError(f"is '{written}'; a share must lie between 0% and 100%, both excluded")
    if unit == "speedup" and not 1 < found.value < math.inf:
        raise ValueError(f"is '{written}'; it must be more than 1x, which is as fast as the dense model")
    if not found.is_share and not 1 <= found.value < math.inf:
        raise ValueError(f"is '{written}'; write it like {_EXAMPLES[unit]}")
    return found
