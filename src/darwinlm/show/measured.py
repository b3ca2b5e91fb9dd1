"""Measurements: quality, tasks, speed, comparisons."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from darwinlm.comparison.table import Comparison, Row, tables
from darwinlm.measure.bench import BenchResult
from darwinlm.measure.evaluation import Evaluation
from darwinlm.measure.predicted import Prediction
from darwinlm.measure.tables import bench_note, bench_tables
from darwinlm.show.result import Result, empty_table, lies, plain, shown
from darwinlm.target.latency import LatencyTable, Work


@dataclass(frozen=True)
class Evaluated(Evaluation, Result):
    """Perplexity of models on held-out text, their KL to the dense one (nats per token), and all at tasks."""

    folder: Path | None = None
    """Where `eval.json` and `eval.md` lie, where they were kept."""

    def tables(self) -> Iterable[Any]:
        """Text, tasks, and where they lie."""
        short = without_common_folder(list(self.qualities or (self.tasks.models if self.tasks else {})))
        for made in self.as_tables():
            headings, *rows = ([short.get(cell, cell) for cell in row] for row in (made.headings, *made.rows))
            yield shown(replace(made, headings=headings, rows=rows))
        if self.folder:
            yield f"{lies('Numbers and tables lie', self.folder / 'eval.json')} and eval.md."


def without_common_folder(names: Sequence[str]) -> dict[str, str]:
    """{name: itself, without the folder that all which are absolute paths have in common}: long ones leave no room for numbers."""
    paths = [name for name in names if os.path.isabs(name)]
    common = os.path.commonpath(paths) + os.sep if len(paths) > 1 else ""
    return {name: name.removeprefix(common) for name in names}


@dataclass(frozen=True)
class Benchmarked(Result):
    """Speed and memory of checkpoints that took turns, and what a latency table predicted."""

    result: BenchResult
    files: tuple[Path, Path]
    """Numbers and picture."""
    predictions: list[Prediction]

    def tables(self) -> Iterable[Any]:
        """A table for each batch size and context length."""
        values = self.result.as_dict()
        yield from map(shown, bench_tables(values))
        yield bench_note(values)
        if self.predictions:
            yield self._predicted()
        yield f"{lies('The numbers lie', self.files[0])} and their picture {lies('', self.files[1]).strip()}"

    def _predicted(self) -> Table:
        columns = ("stage", "predicted", "measured", "error", "speed-up", "measured")
        shown = empty_table("Predicted by the table", "model", *columns)
        for row in self.predictions:
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


@dataclass(frozen=True)
class Latency(Result):
    """What every width of a module takes on this machine, in seconds, and where that lies: for `target.latency_table`."""

    model: str
    table: LatencyTable
    path: Path

    def tables(self) -> Iterable[Any]:
        """A table for each stage of each workload."""
        for times in self.table.stages:
            shown = empty_table(_title(times.work), "module", "width", "ms each")
            for (heads, kv_heads), seconds in times.attention.items():
                shown.add_row("attention", f"{heads} heads, {kv_heads} KV", f"{1e3 * seconds:.3f}")
            for width, seconds in times.mlp.items():
                shown.add_row("MLP", f"{width}", f"{1e3 * seconds:.3f}")
            least = f"at most {times.dense / times.base:.1f}x with every module gone" if times.base else ""
            shown.caption = (
                f"dense {1e3 * times.dense:.2f} ms, {least}; predictions of {len(times.checks)} models of mixed widths were "
                f"off by at most {times.worst_error:.1%}"
            )
            yield shown
        yield ", ".join(f"{key} {value}" for key, value in self.table.machine.items())

    def after(self) -> Sequence[Any]:
        """Prune by it."""
        return "prune", self.model, "--target.speedup", "2x", "--target.latency_table", self.path


def _title(work: Work) -> str:
    read = f"{work.sequences} x {work.tokens:,} tokens"
    return f"{work.stage} of {read}" + (f", {work.written:,} more written" if work.stage == "decode" else "")


@dataclass(frozen=True)
class Compared(Result):
    """Methods side by side."""

    comparison: Comparison
    folder: Path
    """With tables, numbers and pictures."""

    @property
    def rows(self) -> list[Row]:
        """Methods within levels."""
        return self.comparison.rows

    def tables(self) -> Iterable[Any]:
        """A table for each level."""
        yield from map(shown, tables(self.comparison))
        yield lies("Tables, numbers and pictures lie", self.folder)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the rows of the table."""
        return {**super().to_dict(), "rows": plain(self.rows)}


@dataclass(frozen=True)
class Reported(Result):
    """`report.html`."""

    path: Path

    def tables(self) -> Iterable[Any]:
        """Where it lies."""
        yield lies("The report lies", self.path)
