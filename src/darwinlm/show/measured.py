"""Measurements: quality, tasks, speed, comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from darwinlm.comparison.table import Comparison, Row, headings, level_title, texts
from darwinlm.measure.bench import BenchResult
from darwinlm.measure.evaluated import Evaluation
from darwinlm.measure.predicted import Prediction
from darwinlm.measure.task_scores import PAIRED, TaskComparison, difference_rows, score_rows
from darwinlm.show.result import Result, empty_table, gigabytes, lies, plain, quality_cells, speedup_cell
from darwinlm.target.latency import LatencyTable, Work


@dataclass(frozen=True)
class Evaluated(Evaluation, Result):
    """Perplexity of models on held-out text, their KL to the dense one (nats per token), and all at tasks."""

    folder: Path | None = None
    """Where `eval.json` and `eval.md` lie, where they were kept."""

    def tables(self) -> Iterable[Any]:
        """Text, tasks, and where they lie."""
        if self.qualities:
            table = empty_table(self.text, "model", "parameters", "perplexity", "KL to dense")
            for name, quality in self.qualities.items():
                table.add_row(name, f"{quality.parameters:,}", *quality_cells(vars(quality)))
            yield table
        if self.tasks:
            yield from _tasks(self.tasks)
        if self.folder:
            yield f"{lies('Numbers and tables lie', self.folder / 'eval.json')} and eval.md."


def _tasks(comparison: TaskComparison) -> Iterable[Table]:
    """What every model scored, and by how much it differs from the first."""
    scored = _bold_averages("lm-evaluation-harness, with standard errors", *score_rows(comparison))
    scored.caption = f"* counts in the average; questions of each task, at most: {comparison.settings['limit']}"
    yield scored
    heads, rows = difference_rows(comparison)
    if rows:
        paired = _bold_averages("Differences, paired by document", heads, rows)
        paired.caption = PAIRED
        yield paired


def _bold_averages(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    table = empty_table(title, *heads)
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith("average") else None)
    return table


@dataclass(frozen=True)
class Benchmarked(Result):
    """Speed and memory of checkpoints that took turns, and what a latency table predicted."""

    result: BenchResult
    files: tuple[Path, Path]
    """Numbers and picture."""
    predictions: list[Prediction]

    def tables(self) -> Iterable[Any]:
        """A table for each batch size and context length."""
        result = self.result
        columns = ("layers", "first token", "prefill", "speed-up", "decode", "speed-up", "memory", "KV/token")
        for place, first in enumerate(result.measurements[0]):
            work = first.work
            title = f"{work.sequences} x {work.tokens:,} tokens read, {work.written:,} more written; tokens per second"
            table = empty_table(title, "model", *columns)
            for model, (facts, rows) in enumerate(zip(result.models, result.measurements)):
                row = rows[place]
                table.add_row(
                    Path(facts.name).name,
                    f"{result.layer_ratio(model):.2f}x",
                    f"{1e3 * row.prefill_seconds.median:,.1f} ms",
                    f"{row.tokens_per_second('prefill'):,.0f}",
                    speedup_cell(row.prefill_speedup),
                    f"{row.tokens_per_second('decode'):,.0f}",
                    speedup_cell(row.decode_speedup),
                    "-" if row.memory_bytes is None else gigabytes(row.memory_bytes),
                    f"{row.cache_bytes_per_token:,.0f} B",
                )
            yield table
        machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
        yield (
            f"Medians of {result.settings['repeats']} rounds in turn, quartiles in brackets; layers: how many times fewer "
            f"parameters the layers have, which is the speed-up that they promise. {result.models[0].engine}, {machine}."
        )
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
        result = self.comparison
        for level in result.budgets:
            table = empty_table(level_title(result, level), *headings(result))
            table.columns[0].no_wrap = True
            for row in result.rows:
                if row.level == level:
                    table.add_row(*texts(result, row), style="bold" if row.method == "darwinlm" else None)
            table.caption = f"dense: perplexity {result.dense.perplexity:.2f}; held-out text"
            yield table
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
