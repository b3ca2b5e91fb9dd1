"""Results that are kept row by row, so that a benchmark that was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from darwinlm.runtime.files import read_json, write_json

Row = dict[str, Any]


def rows_of(file: Path, wanted: Iterable[Row], make: Callable[[Row], Row]) -> list[Row]:
    """All rows of a file, after those that are wanted and were missing were made; it is written after each."""
    rows: list[Row] = read_json(file) if file.exists() else []
    for asked in wanted:
        if not any(asked.items() <= row.items() for row in rows):
            rows.append({**asked, **make(asked)})
            write_json(file, rows)
    return rows
