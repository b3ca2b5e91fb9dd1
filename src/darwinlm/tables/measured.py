"""Measurements: quality, speed, comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from darwinlm.measure import compare
from darwinlm.measure.bench import BenchResult
from darwinlm.measure.quality import Quality
from darwinlm.tables.cells import empty_table, gigabytes, kl_cell, speedup_cell


def qualities(found: dict[str, Quality], title: str) -> Table:
    """The end of `darwinlm eval`."""
    table = empty_table(title, "model", "parameters", "perplexity", "KL to dense")
    for name, quality in found.items():
        table.add_row(name, f"{quality.parameters:,}", f"{quality.perplexity:.2f}", kl_cell(quality.kl))
    return table


def bench(result: BenchResult) -> Iterable[Any]:
    """The end of `darwinlm bench`: a table for each batch size and context length."""
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
    repeats = result.settings["repeats"]
    machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
    yield (
        f"Medians of {repeats} rounds in turn, quartiles in brackets; layers: how many times fewer parameters the layers "
        f"have, which is the speed-up that they promise. {result.models[0].engine}, {machine}."
    )


def comparison(result: compare.Comparison) -> Iterable[Any]:
    """The end of `darwinlm compare`: a table for each level."""
    for level in result.budgets:
        table = empty_table(compare.level_title(result, level), *compare.headings(result))
        table.columns[0].no_wrap = True
        for row in result.rows:
            if row.level == level:
                table.add_row(*compare.texts(result, row), style="bold" if row.method == "darwinlm" else None)
        table.caption = f"dense: perplexity {result.dense.perplexity:.2f}; held-out text"
        yield table
