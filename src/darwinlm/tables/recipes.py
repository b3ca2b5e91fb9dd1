"""Recipes: what their steps will take, and how they ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from darwinlm.recipes.prediction import RecipePrediction, Work
from darwinlm.runtime.output import pasted
from darwinlm.tables.cells import count, empty_table, gigabytes, kl_cell


def recipe_plan(predicted: RecipePrediction) -> Iterable[Any]:
    """What `darwinlm plan --recipe` prints."""
    columns = ("parameters", "tokens", "operations", "hours", "memory on each", "disk")
    table = empty_table(f"The recipe on {predicted.machine}", "step", *columns)
    for step in predicted.steps:
        table.add_row(step.name, f"{count(step.before)} -> {count(step.after)}")
        for piece in step.work:
            fits = "" if piece.memory_bytes <= predicted.memory_bytes else " (too much)"
            table.add_row(
                f"  {piece.name}",
                "",
                *_cells(piece),
                f"{gigabytes(piece.memory_bytes)}{fits}",
                gigabytes(piece.disk_bytes),
            )
        table.add_section()
    table.caption = (
        f"Hours where {predicted.assumption}; memory without what the runtime itself takes; disk where nothing is deleted "
        "between steps. Parameters of the uniform model: the search decides which modules have them."
    )
    yield table
    yield predicted.headline


def hours(predicted: RecipePrediction) -> str:
    """The time of a single step, in a line."""
    told = ", ".join(f"{piece.name} {_hours(piece)}" for piece in predicted.work)
    return f"Hours on {predicted.machine}, where {predicted.assumption}: {told}. Other machines: --plan.device, --plan.devices."


def hours_here(predicted: RecipePrediction, rate: float, name: str) -> str:
    """The same on this machine, from the rate of its float32 products, of which half is expected to be reached."""
    seconds = {piece.name: 2 * piece.flops / rate for piece in predicted.work}
    told = ", ".join(f"{each} {_time(spent / 3600)}" for each, spent in seconds.items())
    return (
        f"Here ({name}, {rate / 1e9:,.0f} GFLOP/s in float32 just now), where half of that is reached: {told}; then the scores on "
        "held-out text."
    )


def _hours(piece: Work) -> str:
    return _time(piece.hours)


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 0.1 else f"{60 * hours:.1f} min"


def _cells(piece: Work) -> tuple[str, str, str]:
    return f"{piece.tokens / 1e6:,.0f} M", f"{piece.flops:.1e}", _hours(piece)


def recipe_results(results: list[dict[str, Any]]) -> Iterable[Any]:
    """The end of `darwinlm recipe`."""
    table = empty_table("Steps, each scored on its own held-out text", "step", "parameters", "perplexity", "KL")
    for row in results:
        table.add_row(row["step"], f"{row['parameters']:,}", f"{row['perplexity']:.2f}", kl_cell(row["kl"]))
    table.caption = "KL to the model that a pruning began with, or to the teacher of a training."
    yield table
    yield f"The last model lies in {pasted(results[-1]['model'])}"
