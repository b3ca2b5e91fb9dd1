"""Latency tables, and what they predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from darwinlm.measure.predicted import Prediction
from darwinlm.tables.cells import empty_table
from darwinlm.target.latency import LatencyTable, Work


def latency(table: LatencyTable) -> Iterable[Any]:
    """The end of `darwinlm bench --table`: a table for each stage of each workload."""
    for times in table.stages:
        shown = empty_table(_title(times.work), "module", "width", "ms each")
        for (heads, kv_heads), seconds in times.attention.items():
            shown.add_row("attention", f"{heads} heads, {kv_heads} KV", f"{1e3 * seconds:.3f}")
        for width, seconds in times.mlp.items():
            shown.add_row("MLP", f"{width}", f"{1e3 * seconds:.3f}")
        least = f"at most {times.dense / times.base:.1f}x with every module gone" if times.base else ""
        shown.caption = (
            f"dense {1e3 * times.dense:.2f} ms, {least}; predictions of {len(times.checks)} models of mixed widths were off "
            f"by at most {times.worst_error:.1%}"
        )
        yield shown
    yield ", ".join(f"{key} {value}" for key, value in table.machine.items())


def predictions(rows: Sequence[Prediction]) -> Table:
    """The end of `darwinlm bench --latency-table`."""
    shown = empty_table(
        "Predicted by the table", "model", "stage", "predicted", "measured", "error", "speed-up", "measured"
    )
    for row in rows:
        shown.add_row(
            Path(row.model).name,
            row.times.work.stage,
            f"{1e3 * row.predicted:.2f} ms",
            f"{1e3 * row.measured:.2f} ms",
            f"{row.error:+.1%}",
            f"{row.predicted_speedup:.2f}x",
            "-" if row.measured_speedup is None else f"{row.measured_speedup:.2f}x",
        )
    return shown


def _title(work: Work) -> str:
    read = f"{work.sequences} x {work.tokens:,} tokens"
    return f"{work.stage} of {read}" + (f", {work.written:,} more written" if work.stage == "decode" else "")
