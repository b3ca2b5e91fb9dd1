"""A checkpoint's folder: what it was made from, which of its files are ours, and how another one takes its place."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.export.words import PATTERNS
from darwinlm.runtime.files import flush, read_json, remove_folder, write_json
from darwinlm.runtime.progress import log

RECORD = "darwinlm.json"
"""What a checkpoint was made from."""
_DIGESTS = ".written.json"
"""A digest of each file that was written, so that files of others are known."""
_OURS = ("config.json", "model*.safetensors*", "modeling_darwinlm.py", "README.md", RECORD, *PATTERNS)
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def record_of(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint in a folder was made from; None where none of ours lies there.

    Raises:
        DamagedFileError: its record cannot be read.
    """
    return read_json(folder / RECORD) if (folder / RECORD).is_file() else None


def check_replaceable(folder: Path) -> None:
    """Check that a checkpoint may be written to a folder: it is not there, empty, or holds one of ours.

    Raises:
        RequestError: it holds something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / RECORD).is_file():
        raise RequestError(
            f"'{folder}' holds something that DarwinLM has not made. Choose another --output, or move it away."
        )


def partial_of(folder: Path) -> Path:
    """An empty folder beside a checkpoint's place, where it is written before it goes there. A link stays a link."""
    place = folder.resolve()
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def put_in_place(partial: Path, folder: Path, record: dict[str, Any]) -> None:
    """Let a checkpoint that is written whole take the place of the one in `folder`.

    Args:
        partial: from `partial_of`.
        folder: where it goes.
        record: what it was made from.
    """
    write_json(partial / RECORD, record)
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    for path in files:
        flush(path)
    write_json(partial / _DIGESTS, {str(path.relative_to(partial)): _digest(path) for path in files})
    discard(folder)
    place = folder.resolve()
    if place.is_dir():
        place.rmdir()
    partial.rename(place)
    flush(place.parent)


def record_written(folder: Path, *names: str) -> None:
    """Remember files that were written into a folder, beside those that are remembered already."""
    known = read_json(folder / _DIGESTS) if (folder / _DIGESTS).is_file() else {}
    write_json(folder / _DIGESTS, known | {name: _digest(folder / name) for name in names})


def has_record(folder: Path) -> bool:
    """Whether a folder remembers which of its files were written by us."""
    return (folder / _DIGESTS).is_file()


def discard(folder: Path) -> None:
    """Remove a checkpoint; where somebody has added or changed files, it is moved aside whole, and that is said."""
    place = folder.resolve()
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (theirs := _not_ours(place)):
        remove_folder(place)
        return
    kept = next(
        path for number in range(1, 10_000) if not (path := place.with_name(f"{place.name}.kept{number}")).exists()
    )
    place.rename(kept)
    log.warning(
        "'%s' held files that DarwinLM has not written like this (%s): that folder is now '%s'.",
        folder,
        ", ".join(theirs[:5]) + (f" and {len(theirs) - 5} more" if len(theirs) > 5 else ""),
        kept,
    )


def _not_ours(folder: Path) -> list[str]:
    """Files that somebody has added or changed; hidden ones are those of systems and tools."""
    try:
        written = read_json(folder / _DIGESTS) if (folder / _DIGESTS).is_file() else None
    except DamagedFileError:
        written = {}
    found = []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder)
        if any(part.startswith((".", "__pycache__")) for part in name.parts):
            continue
        named_so = any(name.match(pattern) for pattern in _OURS)  # all that is known where an older version wrote it
        if not (named_so if written is None else written.get(str(name)) == _digest(path)):
            found.append(str(name))
    return found


def _digest(path: Path) -> str:
    """SHA-256 of a file's size and of samples of it: other weights are told apart without reading all bytes."""
    if not path.is_file():
        return ""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
