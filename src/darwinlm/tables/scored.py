"""Models at tasks."""

from __future__ import annotations

from rich.table import Table

from darwinlm.measure.task_scores import PAIRED, TaskComparison, difference_rows, score_rows
from darwinlm.tables.cells import empty_table


def tasks(comparison: TaskComparison) -> list[Table]:
    """The end of `darwinlm eval --tasks`: what every model scored, and by how much it differs from the first."""
    scored = _table("lm-evaluation-harness, with standard errors", *score_rows(comparison))
    scored.caption = f"* counts in the average; questions of each task, at most: {comparison.settings['limit']}"
    heads, rows = difference_rows(comparison)
    if not rows:
        return [scored]
    paired = _table("Differences, paired by document", heads, rows)
    paired.caption = PAIRED
    return [scored, paired]


def _table(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    table = empty_table(title, *heads)
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith("average") else None)
    return table
