"""Plans, from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from darwinlm.planning import Plan, SizeRow
from darwinlm.tables.cells import count, empty_table, gigabytes
from darwinlm.target.target import format_limit


def plan(values: Plan) -> Iterable[Any]:
    """What `darwinlm plan` prints."""
    sizes = empty_table(
        "Sizes by level", "level", "parameters", "share", "in layers", "share", "KV/token", "checkpoint"
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
    cost.add_row("database", f"{values.hessian_tokens:,}", gigabytes(memory.database), gigabytes(values.database_bytes))
    cost.add_row("  its hidden states, where there is room", "", gigabytes(memory.hidden_states), "")
    trains = values.search_select_tokens > 0
    tokens = f"{values.search_train_tokens:,}" if trains else ""
    cost.add_row("search, training" if trains else "search, block by block", tokens, gigabytes(memory.search), "")
    if values.search_survivors_tokens:
        fewer = f"-{values.search_survivors_tokens:,}"
        cost.add_row("  its survivors, where there is room", fewer, gigabytes(memory.survivors), "")
    if trains:
        cost.add_row("search, scoring", f"{values.search_select_tokens:,}", "", "")
    cost.add_row("export", "", "", gigabytes(values.target.checkpoint_bytes))
    steps = ", ".join(
        f"{kind} {steps}"
        + (f" ({whole} without tensor_parallel)" if (whole := values.unsplit_steps[kind]) != steps else "")
        for kind, steps in values.steps.items()
    )
    other = "cpu" if values.machine.startswith("cuda") else "cuda"
    cost.caption = (
        f"Memory for {values.machine}; plan for another machine by --device {other}. Steps from dense to gone: {steps}"
    )
    yield cost
    yield from (f"Does not fit: {sentence}" for sentence in values.misfits)


def _limits(values: Plan) -> Table:
    table = empty_table(
        f"Target: {values.target_name}", "quantity", "asked, at most", "uniform model", "smallest possible"
    )
    for name, row in values.limits.items():
        table.add_row(name, *(format_limit(name, row[key]) for key in ("asked", "got", "smallest")))
    table.caption = "The search starts from that uniform model; every model that it looks at keeps the target."
    return table


def _add_size(table: Table, label: str, row: SizeRow, dense: SizeRow) -> None:
    table.add_row(
        label,
        count(row.parameters),
        f"{row.parameters / dense.parameters:.1%}",
        count(row.layer_parameters),
        f"{row.layer_parameters / dense.layer_parameters:.1%}",
        f"{row.kv_cache_values_per_token:,}",
        gigabytes(row.checkpoint_bytes),
    )
