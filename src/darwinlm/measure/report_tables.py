"""The report's tables, from what lies in a run directory as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darwinlm.measure.task_scores import PAIRED, TaskComparison, difference_rows, score_rows
from darwinlm.runtime.progress import duration


@dataclass(frozen=True)
class Table:
    """Rows of texts; without headings they are facts: name and value."""

    rows: list[list[str]]
    headings: list[str] = field(default_factory=list)
    caption: str = ""
    ours: tuple[str, ...] = ()
    """First cells of the rows to stress."""
    folded: str = ""
    """What to click on to see the table; empty shows it."""


def percent(share: float) -> str:
    """A part of the whole."""
    return f"{100 * share:.1f} %"


def _words(key: str) -> str:
    return key.replace("_", " ").replace("mlp", "MLP")


def quality_table(
    named: dict[str, dict[str, Any]], caption: str = "", ours: tuple[str, ...] = (), to: str = "dense"
) -> Table:
    """{label: {parameters, perplexity, kl}}, and the part of the first one's parameters."""
    whole = next(iter(named.values()))["parameters"]
    rows = [
        [
            label,
            f"{row['parameters']:,}",
            percent(row["parameters"] / whole),
            f"{row['perplexity']:.2f}",
            "-" if row.get("kl") is None else f"{row['kl']:.4f}",
        ]
        for label, row in named.items()
    ]
    return Table(rows, ["model", "parameters", "share", "perplexity", f"KL to {to}"], caption, ours)


def asked_table(settings: dict[str, Any], summary: dict[str, Any], genome: dict[str, Any]) -> Table:
    """What was asked, and what came out."""
    asked = settings.get("target", {})
    rows = [["model", str(settings.get("model", ""))], ["data", str(settings.get("data", ""))]]
    rows.append(["target", ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)])
    rows.append(["steps from dense to gone", str(settings.get("database", {}).get("levels", "-"))])
    if totals := genome.get("totals"):
        rows.append(["totals found", ", ".join(f"{_words(kind)} {total:,}" for kind, total in totals.items())])
    for key, value in summary.get("achieved", {}).items():
        text = percent(value) if key == "parameter_ratio" else f"{value:g}" if isinstance(value, float) else str(value)
        rows.append([f"achieved {_words(key)}", text])
    if summary.get("peak_memory_bytes"):
        rows.append(["peak memory", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB"])
    return Table(rows)


def seconds_table(seconds: dict[str, float]) -> Table:
    """How long each stage took."""
    return Table([[stage, duration(taken)] for stage, taken in seconds.items()], ["stage", "time"])


def history(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a search's history; the last one may be cut short while the search runs."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def changes_table(lines: Sequence[dict[str, Any]]) -> Table:
    """What each new parent changed: plus is a level up, so less is left."""
    rows = [
        [
            str(line["generation"] + 1),
            f"{line['kl']:.4f}",
            "  ".join(f"{name.removeprefix('model.')} {step:+d}" for name, step in line["changes"].items()),
        ]
        for line in lines
        if line["improved"]
    ]
    return Table(rows, ["generation", "KL", "changes"], folded=f"What the {len(rows)} winners changed")


def bench_tables(result: dict[str, Any]) -> list[Table]:
    """Speed and memory: a table for each piece of work."""
    columns = ["model", "layers", "prefill tok/s", "speed-up", "decode tok/s", "speed-up", "memory", "KV/token"]
    tables = []
    for place, first in enumerate(result["measurements"][0]):
        rows = []
        for model, measured in zip(result["models"], result["measurements"]):
            row = measured[place]
            memory = row["memory_bytes"]
            rows.append([Path(model["name"]).name, f"{model['layer_ratio']:.2f}x"])
            for stage in ("prefill", "decode"):
                gain = row[f"{stage}_speedup"]
                rows[-1] += [f"{row[f'{stage}_tokens_per_second']:,.0f}", f"{gain['median']:.2f}x" if gain else "-"]
            rows[-1] += [f"{memory / 1e6:,.1f} MB" if memory else "-", f"{row['cache_bytes_per_token']:,.0f} B"]
        work = first["work"]
        caption = f"{work['sequences']} x {work['tokens']:,} tokens read, {work['written']:,} more written"
        tables.append(Table(rows, columns, caption))
    return tables


def task_tables(values: dict[str, Any]) -> list[Table]:
    """Tasks, models side by side, and their paired differences."""
    comparison = TaskComparison.of(values)
    caption = "Standard errors behind ±; * counts in the average. "
    caption += ", ".join(f"{key} {value}" for key, value in comparison.settings.items())
    heads, rows = score_rows(comparison)
    found = [Table(rows, heads, caption, ("average of *",))]
    heads, rows = difference_rows(comparison)
    return [*found, Table(rows, heads, f"Paired: {PAIRED}.", ("average of *",))] if rows else found


def comparison_table(values: dict[str, Any]) -> Table:
    """Every method at every level."""
    later = bool(values["train_tokens"])
    columns = ["method", "level", "parameters", "perplexity", "KL to dense"]
    columns += [f"perplexity, {values['train_tokens']:,} tokens later"] if later else []
    rows = []
    for row in values["rows"]:
        rows.append([row["title"], f"{row['level']:g}", f"{row['parameters']:,.0f}"])
        rows[-1] += [f"{row['perplexity']:,.2f}", f"{row['kl']:.4f}"]
        if later:
            trained = row["trained_perplexity"]
            rows[-1].append("-" if trained is None else f"{trained:,.2f}")
    ours = tuple({row["title"] for row in values["rows"] if row["method"] == "darwinlm"})
    return Table(rows, columns, ours=ours)
