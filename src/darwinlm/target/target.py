"""What is asked of a pruned model as limits on its modules' levels, exactly from shapes, and whether it can be had.

A level is a limit like parameters, memory or time: the steps that are left to each kind of module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from darwinlm.config import RunConfig, TargetConfig, asked_quantities, written
from darwinlm.config.quantities import Quantity, Unit
from darwinlm.errors import RequestError
from darwinlm.formats.types import WHOLE, are_packed
from darwinlm.genome import Genome, Space
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.target.budget import Budget, Limit, level_limits
from darwinlm.target.file_bytes import FileBytes
from darwinlm.target.latency import PICOSECONDS, StageTimes, times_for
from darwinlm.target.stock import StockBudget, WidthsOf, layers_of, stock_levels


@dataclass(frozen=True)
class Target:
    """A target on the modules of one model.

    Args:
        asked: what is asked.
        share: part of every kind of module that is to go as well; None where no level is asked.
        shape: the model that is pruned.
        space: its modules.
        value_bytes: of a stored weight, and of a number in the KV cache.
        times: of its modules, where a speed-up is asked.
        file: its sizes, where modules can be in several formats.
    """

    asked: TargetConfig
    share: float | None
    shape: ModelShape
    space: Space
    value_bytes: int
    times: StageTimes | None = None
    file: FileBytes | None = None

    def budget(self, widths: WidthsOf, lowest: Genome | None = None) -> Budget:
        """The limits on genomes.

        Args:
            widths: of modules at their levels.
            lowest: lowest open levels; by default those of the ladders.
        """
        limits, lowest = tuple(self._limits(widths)), lowest or self.space.present
        if self.asked.shape == "free":
            return Budget(limits, lowest, formats=len(self.space.formats))
        return StockBudget(limits, lowest, layers_of(self.space), stock_levels(self.shape, self.space, widths))

    def within(self, memory: str | int) -> Target:
        """The same with another limit in memory.

        Args:
            memory: bytes, or as `target.memory` is typed.
        """
        return replace(self, asked=replace(self.asked, memory=memory))

    def require_reachable(self, widths: WidthsOf) -> None:
        """Check that some genome meets every limit, and that the model as it is does not.

        Raises:
            RequestError: says of each limit that cannot be met what is the smallest.
        """
        budget = self.budget(widths)
        rows = {limit.name: self._row(limit, budget.lowest, budget.smallest()) for limit in budget.limits}
        left = "every module gone" if self.asked.shape == "free" else "one layer left, the narrowest,"
        faults = [
            f"{self.asked_name(limit)} cannot be met: it allows {format_limit(limit.name, rows[limit.name]['asked'])}, and with "
            f"{left} {format_limit(limit.name, rows[limit.name]['smallest'])} are left. Ask for more than that."
            for limit in budget.limits
            if limit.spent(budget.smallest()) > limit.most
        ]
        if faults:
            raise RequestError(*faults)
        if budget.within(budget.lowest):
            have = "; ".join(
                f"it has {format_limit(name, row['got'])}, and up to {format_limit(name, row['asked'])} are asked"
                for name, row in rows.items()
            )
            raise RequestError(f"The model holds the target as it is: {have}. Ask for a smaller one.")

    def asked_name(self, limit: Limit) -> str:
        """The setting that a limit comes from, with its value."""
        name = {"latency": "speedup"}.get(limit.name, limit.name)
        typed: dict[str, str] = dict(written(self.asked))
        return f"target.{name} {typed[name]}" if name in typed else f"target.level {self.asked.level:g}"

    def achieved(self, genome: Genome, widths: WidthsOf) -> dict[str, dict[str, Any]]:
        """{quantity: asked, got and smallest}, in parameters, bytes, seconds (predicted) and steps.

        Of a latency also the speed-ups, what is asked and what is predicted, and the engine that they are counted in.
        """
        budget = self.budget(widths)
        return {limit.name: self._row(limit, genome, budget.smallest()) for limit in budget.limits}

    def _row(self, limit: Limit, genome: Genome, smallest: Genome) -> dict[str, Any]:
        row: dict[str, float] = {"asked": limit.most, "got": limit.spent(genome), "smallest": limit.spent(smallest)}
        if limit.name != "latency" or self.times is None:
            return row
        seconds = {key: value / PICOSECONDS for key, value in row.items()}
        dense = self.times.dense
        speedups = {"asked_speedup": dense / seconds["asked"], "predicted_speedup": dense / seconds["got"]}
        return {**seconds, **speedups, "engine": self.times.engine}

    def _limits(self, widths: WidthsOf) -> list[Limit]:
        found = [self._hard_limit(name, asked, widths) for name, asked in asked_quantities(self.asked).items()]
        if self.share is not None:
            found += level_limits(self.space, self.space.targets(self.share))
        return found

    def _hard_limit(self, name: Unit, asked: Quantity, widths: WidthsOf) -> Limit:
        if name == "speedup":
            return self._latency_limit(asked.value, widths)
        if name == "memory" and self.file:
            return self._file_limit(self.file, asked, widths)
        count = self._parameters if name == "parameters" else self._bytes
        shared = self.shape.shared_parameters  # belongs to no module alone, so it counts in any case
        outside = self.shape.parameters - self.shape.layer_parameters + shared
        base = outside
        if name == "memory":
            base = (outside + self.shape.states * self.asked.batch) * self.value_bytes
        if name == "parameters" and self.asked.parameters_of == "layers":
            base = shared
        costs = self._costs(widths, count)
        dense = base + sum(map(count, self.shape.layers))
        return Limit(name, asked.of(dense), base, costs)

    def _file_limit(self, file: FileBytes, asked: Quantity, widths: WidthsOf) -> Limit:
        """Of the whole file, and the KV cache in f16."""

        def taken(held: LayerWidths, format_: str) -> int:
            return file.module(held, format_) + WHOLE["f16"] * self._cached(held)

        costs = tuple(
            tuple(taken(widths(ladder, rung), ladder.format(rung)) for rung in range(ladder.top + 1))
            for ladder in self.space.ladders
        )
        dense = replace(file, embedding=file.stored).outside + sum(taken(held, "") for held in self.shape.layers)
        return Limit("memory", asked.of(dense), file.outside, costs)

    def _latency_limit(self, speedup: float, widths: WidthsOf) -> Limit:
        times = self.times
        if times is None:
            raise ValueError("a speed-up needs a latency table")
        costs = self._costs(widths, lambda w: round(times.module_seconds(w) * PICOSECONDS))
        return Limit("latency", int(times.dense / speedup * PICOSECONDS), round(times.base * PICOSECONDS), costs)

    def _costs(self, widths: WidthsOf, count: Callable[[LayerWidths], int]) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(count(widths(ladder, level)) for level in range(ladder.top + 1)) for ladder in self.space.ladders
        )

    def _parameters(self, widths: LayerWidths) -> int:
        return self.shape.module_parameters(widths)

    def _bytes(self, widths: LayerWidths) -> int:
        """Weights, and keys and values of every token of every sequence."""
        return (self._parameters(widths) + self._cached(widths)) * self.value_bytes

    def _cached(self, widths: LayerWidths) -> int:
        """Numbers in the KV cache."""
        return 2 * widths.kv_heads * self.shape.head_dim * self.asked.batch * self.asked.context


def target_of(
    config: RunConfig,
    shape: ModelShape,
    space: Space,
    value_bytes: int,
    device: torch.device,
    dtype: torch.dtype,
    header: int = 0,
) -> Target:
    """What a run asks for.

    Args:
        config: of the run.
        shape: the model that is pruned.
        space: its modules.
        value_bytes: of a stored weight.
        device: that the run computes on.
        dtype: arithmetic of the run.
        header: bytes of a GGUF file before its tensors, where formats are asked.

    Raises:
        RequestError: the latency table does not fit the run.
    """
    times, file = times_for(config.target, shape, device, dtype), None
    if config.target.formats:
        stored = next(name for name in WHOLE if WHOLE[name] == value_bytes)
        stubs = "" if are_packed(config.target.formats) else space.formats[-1]
        file = FileBytes(shape, stored, config.target.embedding_format or stored, stubs, header)
    share = None if config.target.level is None else config.target.level / config.database.levels
    return Target(config.target, share, shape, space, value_bytes, times, file)


def format_limit(name: str, value: float) -> str:
    """A limit's value in words; latencies in seconds."""
    if name == "latency":
        return f"{1e3 * value:,.2f} ms"
    return f"{value:,} {'bytes' if name == 'memory' else name}"
