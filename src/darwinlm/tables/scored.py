"""Models at tasks."""

from __future__ import annotations

from rich.table import Table

from darwinlm.measure.task_scores import TaskComparison, headings, texts
from darwinlm.tables.cells import empty_table


def tasks(comparison: TaskComparison) -> Table:
    """The end of `darwinlm eval --tasks`: a row for each metric, a column for each model."""
    table = empty_table("lm-evaluation-harness, with standard errors", *headings(comparison))
    for row in texts(comparison):
        table.add_row(*row, style="bold" if row[0].startswith("average") else None)
    table.caption = "* counts in the average"
    return table
