"""Documents from a hub data set, from files, or from the Python source on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as parquet
from pyarrow import ArrowException
from pyarrow.types import is_large_string, is_string

from darwinlm.data.stdlib import stdlib_documents
from darwinlm.errors import DamagedFileError, RequestError, first_line

SUFFIXES = (".txt", ".jsonl", ".parquet")
PART_CHARACTERS = 1 << 20
"""A longer .txt file is read in parts of about this size, so that a file of any size takes no more memory."""


class Rest(str):
    """A part of a document that goes on where the text before it stopped."""


@dataclass(frozen=True)
class HubPreset:
    """A hub data set with the filter that it is known by."""

    path: str
    name: str
    score_field: str
    min_score: float


HUB_PRESETS = {
    # The paper keeps documents scored >= 0.9 (arXiv 2502.07780, section 4), on the scale of the language score.
    "fineweb-edu": HubPreset("HuggingFaceFW/fineweb-edu", "sample-10BT", "language_score", 0.9),
}


def documents(source: str, text_field: str, *, held_out: bool = False) -> Iterator[str]:
    """Yield the documents of a source in their order; a .txt file is one document, a long one in parts.

    Parts end at line ends, and all but the first are `Rest`; put together they are the file's text.

    Args:
        source: see `RunConfig.data`.
        text_field: field that holds the text in structured files.
        held_out: of `stdlib`, the part that is never fitted to; other sources have no such part.

    Raises:
        RequestError: nothing readable is there.
    """
    if source == "stdlib":
        return stdlib_documents(held_out=held_out)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise RequestError(f"The folder '{source}' holds no {', '.join(SUFFIXES)} file.")
        return (text for file in files for text in _from_file(file, text_field))
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise RequestError(
                f"'{source}' is of no kind that can be read; give a {', '.join(SUFFIXES)} file or a folder of them."
            )
        return _from_file(path, text_field)
    if source in HUB_PRESETS or _looks_like_hub_id(source):
        return _from_hub(source, text_field)
    raise RequestError(
        f"There is no text at '{source}'. Give a file, a folder, a hub data set such as allenai/c4:en, or stdlib."
    )


def _looks_like_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith(SUFFIXES)


def _from_file(path: Path, text_field: str) -> Iterator[str]:
    try:
        if path.suffix == ".txt":
            with path.open(encoding="utf-8") as lines:
                yield _part(lines)
                while part := _part(lines):
                    yield Rest(part)
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        where = f"'{path}', line {number}"
                        yield _field(_parsed(line, where), text_field, where)
        else:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if text_field not in names or not _is_text(file.schema_arrow.field(text_field).type):
                    raise _no_field(text_field, names, f"'{path}'")
                for batch in file.iter_batches(columns=[text_field]):
                    yield from (text for text in batch[text_field].to_pylist() if text)
    except UnicodeDecodeError as fault:
        raise RequestError(f"'{path}' is not UTF-8 text: {fault}.") from fault
    except (ArrowException, OSError) as fault:
        raise DamagedFileError(f"'{path}' cannot be read: {fault}.") from fault


def _part(lines: TextIO) -> str:
    """The next characters, up to a line end where one is near."""
    return lines.read(PART_CHARACTERS) + lines.readline(PART_CHARACTERS)


def _is_text(kind: Any) -> bool:
    return is_string(kind) or is_large_string(kind)


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as fault:
        raise DamagedFileError(f"{where} is not valid JSON: {fault}.") from fault


def _from_hub(source: str, text_field: str) -> Iterator[str]:
    from datasets import load_dataset  # slow to import, and needed by this source alone

    preset = HUB_PRESETS.get(source)
    try:
        if preset:
            rows = load_dataset(preset.path, name=preset.name, split="train", streaming=True)
        else:
            path, _, name = source.partition(":")
            rows = load_dataset(path, name=name or None, split="train", streaming=True)
        for row in rows:
            if preset is None or row[preset.score_field] >= preset.min_score:
                yield _field(row, text_field, f"data set '{source}'")
    except (OSError, ValueError) as fault:
        raise RequestError(
            f"The hub data set '{source}' cannot be read ({first_line(fault)}). Check its name, its configuration "
            "(owner/name:configuration) and the connection."
        ) from fault


def _field(row: Any, text_field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        raise _no_field(text_field, list(row) if isinstance(row, dict) else [], where)
    return row[text_field]


def _no_field(text_field: str, fields: list[str], where: str) -> RequestError:
    return RequestError(
        f"{where} has no text in a field '{text_field}'; set blocks.text_field. Fields there: {', '.join(fields) or 'none'}."
    )
