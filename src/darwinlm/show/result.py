"""What a command ends with: a dataclass that prints itself as tables and gives itself as plain data. And what tables share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from darwinlm.measure import tables
from darwinlm.runtime.output import pasted
from darwinlm.runtime.progress import duration


@dataclass(frozen=True)
class Result:
    """The result of a command. `print` of rich shows its tables."""

    def tables(self) -> Iterable[Any]:
        """Tables and sentences, in order."""
        return ()

    def after(self) -> Sequence[Any]:
        """The words of the command to type next, after `darwinlm`; none where nothing suggests itself."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings, lists and dictionaries, as `--json` prints them."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __rich__(self) -> Group:
        return Group(*self.tables())


def plain(value: Any) -> Any:
    """Plain data of anything that a result holds; what is none is told as text."""
    if isinstance(value, bool | str | float | type(None)):
        return value
    if isinstance(value, int):
        return int(value)
    for own in ("to_dict", "as_dict"):
        if hasattr(value, own) and not isinstance(value, type):
            return plain(getattr(value, own)())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value).removeprefix("torch.")


def _key(key: Any) -> str:
    return ",".join(map(str, key)) if isinstance(key, tuple) else f"{key:g}" if isinstance(key, float) else str(key)


def lies(what: str, place: Any) -> str:
    """A sentence that says where something lies; the path can be pasted."""
    return f"{what} in {pasted(place)}"


def shown(made: tables.Table) -> Table:
    """A table with its rows, for the terminal."""
    table = empty_table(made.title, *made.headings)
    table.columns[0].no_wrap = True
    for row in made.rows:
        table.add_row(*row, style="bold" if row[0] in made.ours else None)
    table.caption = made.note or None
    return table


def empty_table(title: str, first: str, *columns: str) -> Table:
    """A table with a title; all columns but the first are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def taken(summary: Mapping[str, Any]) -> str:
    """Time by stage, and memory."""
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in summary["seconds"].items())
    return f"{stages}; peak memory {summary['peak_memory_bytes'] / 1e9:.2f} GB"
