"""Cells and frames that the tables share."""

from __future__ import annotations

from rich.table import Table

from darwinlm.measure.timing import Spread


def empty_table(title: str, first: str, *columns: str) -> Table:
    """A table with a title; all columns but the first are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def kl_cell(value: float | None) -> str:
    """Nats per token."""
    return "-" if value is None else f"{value:.4f}"


def count(parameters: int) -> str:
    """Parameters, in millions or billions."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def gigabytes(size: int) -> str:
    """Bytes, in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def speedup_cell(spread: Spread | None) -> str:
    """Median and quartiles."""
    return "-" if spread is None else f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
