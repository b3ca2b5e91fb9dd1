"""Plans, from the configuration alone; and what may be planned."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from darwinlm.measure.tables import gigabytes
from darwinlm.run.plan import Plan, SizeRow
from darwinlm.run.prediction import RecipePrediction, count
from darwinlm.show.result import Result, empty_table
from darwinlm.target.target import format_limit


@dataclass(frozen=True)
class Planned(Result):
    """Sizes, disk, memory, tokens and hours of a run."""

    plan: Plan
    prediction: RecipePrediction
    """Hours on the machine of `plan.device`."""
    here: tuple[str, float] | None
    """This machine, and its operations a second in float32; None where another is planned for."""

    def tables(self) -> Iterable[Any]:
        """Sizes by level, the target, what the run takes."""
        values = self.plan
        active = ["active"] if _has_experts(values.dense) else []
        sizes = empty_table(
            "Sizes by level", "level", "parameters", "share", "in layers", "share", "KV/token", "checkpoint", *active
        )
        for row in (values.dense, *values.levels):
            label = "as it is" if values.begun and row is values.dense else f"{row.level:g}"
            _add_size(sizes, label, row, values.dense)
        sizes.add_section()
        _add_size(sizes, f"target {values.target.level:g}", values.target, values.dense)
        yield sizes
        if values.limits:
            yield _limits(values)
        cost = empty_table("What the run takes", "stage", "tokens", "memory", "disk")
        memory = values.memory
        cost.add_row(
            "database", f"{values.hessian_tokens:,}", gigabytes(memory.database), gigabytes(values.database_bytes)
        )
        cost.add_row("  its hidden states, where there is room", "", gigabytes(memory.hidden_states), "")
        if values.rounded_bytes:
            tokens = f"{values.hessian_tokens:,}"
            cost.add_row("its levels in formats", tokens, gigabytes(memory.rounding), gigabytes(values.rounded_bytes))
        trains = values.search_select_tokens > 0
        tokens = f"{values.search_train_tokens:,}" if trains else ""
        cost.add_row("search, training" if trains else "search, block by block", tokens, gigabytes(memory.search), "")
        if values.search_survivors_tokens:
            fewer = f"-{values.search_survivors_tokens:,}"
            cost.add_row("  its survivors, where there is room", fewer, gigabytes(memory.survivors), "")
        if trains:
            cost.add_row("search, scoring", f"{values.search_select_tokens:,}", "", "")
        if memory.refit:
            cost.add_row("refit, block by block", "", gigabytes(memory.refit), "")
        cost.add_row("export", "", "", gigabytes(values.target.checkpoint_bytes))
        steps = ", ".join(
            f"{kind} {steps}"
            + (f" ({whole} without tensor_parallel)" if (whole := values.unsplit_steps[kind]) != steps else "")
            for kind, steps in values.steps.items()
        )
        other = "cpu" if values.machine.startswith("cuda") else "cuda"
        there = f"Memory for {values.machine}; plan for another machine by --device {other}."
        cost.caption = f"{there} Steps from dense to gone: {steps}"
        yield cost
        yield from (f"Does not fit: {sentence}" for sentence in values.misfits)
        if self.here:
            yield _hours_here(self.prediction, *self.here)
        yield _hours_there(self.prediction)


@dataclass(frozen=True)
class RecipePlanned(Result):
    """What the steps of a recipe will take."""

    prediction: RecipePrediction

    def tables(self) -> Iterable[Any]:
        """A row for each piece of work."""
        predicted = self.prediction
        columns = ("parameters", "tokens", "operations", "hours", "memory on each", "disk")
        table = empty_table(f"The recipe on {predicted.machine}", "step", *columns)
        for step in predicted.steps:
            table.add_row(step.name, f"{count(step.before)} -> {count(step.after)}")
            for piece in step.work:
                fits = "" if piece.memory_bytes <= predicted.memory_bytes else " (too much)"
                work = (f"{piece.tokens / 1e6:,.0f} M", f"{piece.flops:.1e}", _time(piece.hours))
                memory = f"{gigabytes(piece.memory_bytes)}{fits}"
                table.add_row(f"  {piece.name}", "", *work, memory, gigabytes(piece.disk_bytes))
            table.add_section()
        table.caption = (
            f"Hours where {predicted.assumption}; memory without what the runtime itself takes; disk where nothing is deleted "
            "between steps. Parameters of the uniform model: the search decides which modules have them."
        )
        yield table
        yield predicted.headline


@dataclass(frozen=True)
class Schema(Result):
    """JSON schema of the settings, for editors that check and complete YAML."""

    schema: dict[str, Any]

    def tables(self) -> Iterable[Any]:
        """The schema, as JSON."""
        yield json.dumps(self.schema, indent=2)

    def to_dict(self) -> dict[str, Any]:
        """The schema itself."""
        return self.schema


def _limits(values: Plan) -> Table:
    table = empty_table(
        f"Target: {values.target_name}", "quantity", "asked, at most", "uniform model", "smallest possible"
    )
    for name, row in values.limits.items():
        table.add_row(name, *(format_limit(name, row[key]) for key in ("asked", "got", "smallest")))
    table.caption = "The search starts from that uniform model; every model that it looks at keeps the target."
    return table


def _add_size(table: Table, label: str, row: SizeRow, dense: SizeRow) -> None:
    active = row.parameters - row.layer_parameters + row.active_layer_parameters  # embeddings included
    table.add_row(
        label,
        count(row.parameters),
        f"{row.parameters / dense.parameters:.1%}",
        count(row.layer_parameters),
        f"{row.layer_parameters / dense.layer_parameters:.1%}",
        f"{row.kv_cache_values_per_token:,}",
        gigabytes(row.checkpoint_bytes),
        *([count(active)] if _has_experts(dense) else []),
    )


def _has_experts(row: SizeRow) -> bool:
    return row.active_layer_parameters < row.layer_parameters


def _hours_there(predicted: RecipePrediction) -> str:
    """The time of a single step, in a line."""
    told = ", ".join(f"{piece.name} {_time(piece.hours)}" for piece in predicted.work)
    return f"Hours on {predicted.machine}, where {predicted.assumption}: {told}. Other machines: --plan.device, --plan.devices."


def _hours_here(predicted: RecipePrediction, name: str, rate: float) -> str:
    """The same on this machine, from the rate of its float32 products, of which half is expected to be reached."""
    seconds = {piece.name: 2 * piece.flops / rate for piece in predicted.work}
    told = ", ".join(f"{each} {_time(spent / 3600)}" for each, spent in seconds.items())
    return (
        f"Here ({name}, {rate / 1e9:,.0f} GFLOP/s in float32 just now), where half of that is reached: {told}; then the scores on "
        "held-out text."
    )


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 0.1 else f"{60 * hours:.1f} min" if hours >= 0.01 else f"{3600 * hours:.1f} s"
