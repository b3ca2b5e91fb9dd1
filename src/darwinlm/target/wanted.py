"""What is asked of a pruned model as limits on its modules' levels, exactly from shapes, and whether it can be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from darwinlm.config import TargetConfig, asked_quantities
from darwinlm.config.quantities import Quantity, Unit
from darwinlm.database.levels import Kind, Ladder
from darwinlm.errors import RequestError
from darwinlm.genome import Genome, Space
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.target.budget import Budget, Limit
from darwinlm.target.latency import PICOSECONDS, StageTimes

WidthsOf = Callable[[Ladder, int], LayerWidths]
"""The widths of a module at a level, in an otherwise absent layer."""


@dataclass(frozen=True)
class Wanted:
    """A target that is not a level alone.

    Args:
        target: what is asked.
        share: part of every kind of module that is to go as well; None where no level is asked.
        shape: the model that is pruned.
        space: its modules.
        value_bytes: of a stored weight, and of a number in the KV cache.
        times: of its modules, where a speed-up is asked.
    """

    target: TargetConfig
    share: float | None
    shape: ModelShape
    space: Space
    value_bytes: int
    times: StageTimes | None = None

    def budget(self, widths: WidthsOf, lowest: Genome | None = None) -> Budget:
        """The limits on genomes.

        Args:
            widths: of modules at their levels.
            lowest: lowest open levels; by default those of the ladders.
        """
        return Budget(tuple(self._limits(widths)), lowest or tuple(map(lowest_level, self.space.ladders)))

    def require_reachable(self, widths: WidthsOf) -> None:
        """Check that some genome meets every limit, and that the model as it is does not.

        Raises:
            RequestError: says of each limit that cannot be met what is the smallest.
        """
        budget = self.budget(widths)
        faults = [
            f"{self.asked_name(limit)} cannot be met: with every module gone, {told(limit.name, limit.base)} are left, and "
            f"{told(limit.name, limit.most)} are asked. Ask for more."
            for limit in budget.limits
            if limit.base > limit.most
        ]
        if faults:
            raise RequestError(*faults)
        if budget.within(budget.lowest):
            have = "; ".join(
                f"it has {told(l.name, l.spent(budget.lowest))}, and {told(l.name, l.most)} are asked"
                for l in budget.limits
            )
            raise RequestError(f"The model holds the target as it is: {have}. Ask for less, or leave it as it is.")

    def asked_name(self, limit: Limit) -> str:
        """The setting that a limit comes from, with its value."""
        names = {"latency": "speedup"}
        name = names.get(limit.name, limit.name if limit.name in ("parameters", "memory") else "level")
        return f"target.{name} {getattr(self.target, name)}"

    def achieved(self, genome: Genome, widths: WidthsOf) -> dict[str, dict[str, Any]]:
        """{quantity: what is asked and what a genome has}, in parameters, bytes, predicted speed-ups and levels."""
        return {
            limit.name: {**self._in_units(limit, genome), "smallest": limit.base}
            for limit in self.budget(widths).limits
        }

    def _in_units(self, limit: Limit, genome: Genome) -> dict[str, Any]:
        got = limit.spent(genome)
        if limit.name != "latency" or self.times is None:
            return {"asked": limit.most, "got": got}
        dense = self.times.dense
        return {
            "asked": limit.most / PICOSECONDS,
            "got": got / PICOSECONDS,
            "asked_speedup": dense / (limit.most / PICOSECONDS),
            "predicted_speedup": dense / (got / PICOSECONDS),
        }

    def _limits(self, widths: WidthsOf) -> list[Limit]:
        found = [self._hard_limit(name, asked, widths) for name, asked in asked_quantities(self.target).items()]
        return found + [self._level_limit(kind) for kind in self.space.kinds if self.share is not None]

    def _hard_limit(self, name: Unit, asked: Quantity, widths: WidthsOf) -> Limit:
        if name == "speedup":
            return self._latency_limit(asked.value, widths)
        count = self._parameters if name == "parameters" else self._bytes
        outside = self.shape.parameters - self.shape.layer_parameters
        base = outside * self.value_bytes if name == "memory" else outside
        if name == "parameters" and self.target.parameters_of == "layers":
            base = 0
        costs = self._costs(widths, count)
        dense = base + sum(map(count, self.shape.layers))
        return Limit(name, asked.of(dense), base, costs)

    def _latency_limit(self, speedup: float, widths: WidthsOf) -> Limit:
        times = self.times
        if times is None:
            raise ValueError("a speed-up needs a latency table")
        costs = self._costs(widths, lambda w: round(times.module_seconds(w) * PICOSECONDS))
        return Limit("latency", int(times.dense / speedup * PICOSECONDS), round(times.base * PICOSECONDS), costs)

    def _level_limit(self, kind: Kind) -> Limit:
        """Steps of a kind that are left, at most those of the share."""
        members, ladders = self.space.members(kind), self.space.ladders
        most = sum(ladders[i].top for i in members) - self.space.targets(self.share or 0)[kind]
        costs = tuple(
            tuple((ladder.top - level) * (ladder.kind == kind) for level in range(ladder.top + 1)) for ladder in ladders
        )
        return Limit(f"{kind} steps", most, 0, costs)

    def _costs(self, widths: WidthsOf, count: Callable[[LayerWidths], int]) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(count(widths(ladder, level)) for level in range(ladder.top + 1)) for ladder in self.space.ladders
        )

    def _parameters(self, widths: LayerWidths) -> int:
        attention = self.shape.attention_parameters(widths.heads, widths.kv_heads)
        return attention + self.shape.mlp_parameters(widths.intermediate)

    def _bytes(self, widths: LayerWidths) -> int:
        """Weights, and keys and values of every token of every sequence."""
        cached = 2 * widths.kv_heads * self.shape.head_dim * self.target.batch * self.target.context
        return (self._parameters(widths) + cached) * self.value_bytes


def lowest_level(ladder: Ladder) -> int:
    """The level at which a module stands now."""
    return 0


def told(name: str, value: int) -> str:
    """A limit's value in words."""
    if name == "latency":
        return f"{1e3 * value / PICOSECONDS:,.2f} ms"
    return f"{value:,} {'bytes' if name == 'memory' else name}"
