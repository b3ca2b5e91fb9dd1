"""Text in files: plain, JSON, JSON Lines, CSV and Parquet, compressed or not, and folders of them."""

from __future__ import annotations

import csv
import io
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow
import pyarrow.parquet as parquet
from pyarrow import ArrowException

from darwinlm.data.reading import Reading
from darwinlm.errors import DamagedFileError, RequestError, first_line
from darwinlm.runtime.progress import warn_once

PART_CHARACTERS = 1 << 20
"""A longer text file is read in parts of about this size, so that a file of any size takes no more memory."""
WHOLE_CHARACTERS = 1 << 28
"""Most characters of a row, and of a .json file that is not a row a line."""
PARQUET_ROWS = 1024
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_BLANK = re.compile(r"\s*")
_TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")


class Rest(str):
    """A part of a document that goes on where the text before it stopped."""


def kind_of(path: Path) -> str | None:
    """The suffix that says how a file is read, such as `.jsonl` for `a.jsonl.gz`; None where it is not."""
    suffixes = [suffix.lower() for suffix in path.suffixes] or [""]
    if suffixes[-1] in _CODECS and suffixes[-2:-1] != [".parquet"]:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def file_documents(path: Path, reading: Reading) -> Iterator[str]:
    """The documents of a file.

    A damaged file is refused, or read up to the damage where the reading is not strict.

    Raises:
        DamagedFileError: it cannot be read.
    """
    rest, where = "in the rest of a damaged file", f"'{path}'"
    try:
        yield from READERS[kind_of(path) or ""](path, reading)
    except RequestError as fault:
        reading.fault(fault, rest, where)
    except UnicodeDecodeError as fault:
        place = f"byte {fault.object[fault.start]:#04x} ({fault.reason})"
        told = DamagedFileError(
            f"'{path}' is not {fault.encoding.upper().removesuffix('-SIG')} text: {place}. Convert it, for example: "
            "iconv -f latin1 -t utf-8."
        )
        reading.fault(told, rest, where)
    except (ArrowException, OSError, EOFError, lzma.LZMAError, csv.Error, ValueError) as fault:
        told = DamagedFileError(f"'{path}' cannot be read: {first_line(fault)}.")
        if isinstance(fault, OSError) and fault.errno:  # a disk's fault, not the file's
            raise told from fault
        reading.fault(told, rest, where)


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that are read, in the order of their paths; linked folders count, each folder once.

    What is not read is named in a warning.

    Raises:
        RequestError: a link leads nowhere, a folder cannot be opened, or there is nothing to read.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_cannot_list):
        if (real := os.path.realpath(here)) in visited:
            folders.clear()
            continue
        visited.add(real)
        hidden = [name for name in folders if name.startswith(".")]
        others["hidden folder"] += len(hidden)
        folders[:] = sorted(set(folders) - set(hidden))
        for name in names:
            path = Path(here, name)
            if name.startswith("."):
                others["hidden"] += 1
            elif not path.exists():
                raise RequestError(f"'{path}' is a link to nothing. Take it away, or bring back what it names.")
            elif kind_of(path) is None or not path.is_file():
                others[path.suffix.lower() or "no suffix"] += 1
            else:
                found.append(path)
    cards = [path for path in found if path.name.lower() == "readme.md" and _has_rows(path.parent, found)]
    others["README.md, a data set's card"] += len(cards)
    found = sorted(set(found) - set(cards))
    listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(others.items()) if count)
    if not found:
        there = f" It holds: {listed}." if listed else ""
        raise RequestError(f"The folder '{folder}' holds no {', '.join(READERS)} file, compressed or not.{there}")
    if listed:
        warn_once(f"Files in '{folder}' that are not read: {listed}.")
    return found


def _has_rows(folder: Path, files: list[Path]) -> bool:
    return any(kind_of(path) not in (".txt", ".md") and folder in path.parents for path in files)


def _cannot_list(fault: OSError) -> None:
    raise RequestError(f"The folder '{fault.filename}' cannot be read: {fault.strerror}.") from fault


@contextmanager
def _bytes(path: Path) -> Iterator[BinaryIO]:
    codec = _CODECS.get(path.suffix.lower())
    if codec is None:
        opened: Any = path.open("rb")
    elif codec == "xz":
        opened = lzma.open(path)  # noqa: SIM115
    else:
        opened = pyarrow.input_stream(str(path), compression=codec)
    with opened:
        yield opened


@contextmanager
def _characters(path: Path, reading: Reading, newline: str | None = None) -> Iterator[TextIO]:
    """The file as text: UTF-8, or what its byte order mark says."""
    with _bytes(path) as file:
        begin = file.read(4096)
    encoding = next((name for mark, name in _MARKS.items() if begin.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in begin:
        raise DamagedFileError(
            f"'{path}' holds zero bytes, so it is no UTF-8 text: it is UTF-16 without a byte order mark, or no text. "
            "Save it as UTF-8."
        )
    with _bytes(path) as file:
        errors = "strict" if reading.strict else "surrogateescape"
        yield io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)


def _plain(path: Path, reading: Reading) -> Iterator[str]:
    with _characters(path, reading) as lines:
        part = _part(lines)
        if not part or (part.isspace() and len(part) < PART_CHARACTERS):
            reading.count("without text", f"'{path}'")
            return
        yield reading.mended(part, f"'{path}'")
        while part := _part(lines):
            yield Rest(reading.mended(part, f"'{path}'"))


def _part(lines: TextIO) -> str:
    """The next characters, up to a line end where one is near."""
    return lines.read(PART_CHARACTERS) + lines.readline(PART_CHARACTERS)


def _json_lines(path: Path, reading: Reading) -> Iterator[str]:
    with _characters(path, reading, newline="\n") as lines:
        yield from _rows_of_lines(path, lines, reading)


def _rows_of_lines(path: Path, lines: TextIO, reading: Reading, first: int = 1) -> Iterator[str]:
    for number in range(first, 1 << 62):
        line = lines.readline(WHOLE_CHARACTERS)
        if not line:
            return
        where = f"'{path}', line {number}"
        if len(line) == WHOLE_CHARACTERS:
            raise DamagedFileError(f"{where} is longer than {WHOLE_CHARACTERS:,} characters. Cut it into rows.")
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as fault:
            told = DamagedFileError(f"{where} is not valid JSON: {first_line(fault)}.")
            reading.fault(told, "of no valid JSON", where)
            continue
        if (text := reading.text(row, where)) is not None:
            yield text


def _json(path: Path, reading: Reading) -> Iterator[str]:
    """A row a line, as many .json files are, or values that stand anyhow: objects, or lists of them."""
    with _characters(path, reading, newline="\n") as lines:
        number, head = 0, "\n"
        while head.isspace():
            number, head = number + 1, lines.readline(WHOLE_CHARACTERS)
        try:
            row = json.loads(head) if head else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            if (text := reading.text(row, f"'{path}', line {number}")) is not None:
                yield text
            yield from _rows_of_lines(path, lines, reading, number + 1)
            return
        whole = head + lines.read(WHOLE_CHARACTERS - len(head) + 1)
    if len(whole) > WHOLE_CHARACTERS:
        raise DamagedFileError(f"'{path}' is too large for one JSON value. Make a row of each line: jq -c '.[]'.")
    yield from _rows_of_values(path, whole, reading)


def _rows_of_values(path: Path, whole: str, reading: Reading) -> Iterator[str]:
    decoder, number, place = json.JSONDecoder(), 0, _BLANK.match(whole).end()  # type: ignore[union-attr]
    while place < len(whole):
        try:
            value, place = decoder.raw_decode(whole, place)
        except (ValueError, RecursionError) as fault:
            told = DamagedFileError(f"'{path}' is not valid JSON: {first_line(fault)}.")
            reading.fault(told, "in the rest of a damaged file", f"'{path}'")
            return
        place = _BLANK.match(whole, place).end()  # type: ignore[union-attr]
        for row in value if isinstance(value, list) else [value]:
            number += 1
            if (text := reading.text(row, f"'{path}', row {number}")) is not None:
                yield text


def _csv(path: Path, reading: Reading) -> Iterator[str]:
    csv.field_size_limit(WHOLE_CHARACTERS)
    with _characters(path, reading, newline="") as lines:
        delimiter = "\t" if kind_of(path) == ".tsv" else ","
        rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
        if not set(reading.fields) & set(rows.fieldnames or []):
            raise reading.no_field(list(rows.fieldnames or []), f"'{path}'")
        for row in rows:
            where = f"'{path}', line {rows.line_num}"
            if None in row:  # the text would go on behind a comma that is not quoted
                told = DamagedFileError(f"{where} has more fields than the first line names. Quote the text.")
                reading.fault(told, "with too many fields", where)
            elif (text := reading.text(row, where)) is not None:
                yield text


def _parquet(path: Path, reading: Reading) -> Iterator[str]:
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        name = next((name for name in reading.fields if name in schema.names), "")
        if not name or not _is_text(schema.field(name).type):
            raise reading.no_field(schema.names, f"'{path}'")
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=[name]):
            for value in batch.column(0).to_pylist():
                number += 1
                row = {name: value.decode("utf-8") if isinstance(value, bytes) else value}
                if (text := reading.text(row, f"'{path}', row {number}")) is not None:
                    yield text


def _is_text(kind: Any) -> bool:
    return str(getattr(kind, "value_type", kind) if pyarrow.types.is_dictionary(kind) else kind) in _TEXT_TYPES


READERS: dict[str, Callable[[Path, Reading], Iterator[str]]] = {
    ".txt": _plain,
    ".md": _plain,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""How a file is read, by its suffix; another suffix of compression may follow."""
