"""Files that are whole or absent: written beside, flushed to the disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from darwinlm.errors import DamagedFileError, RequestError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is flushed and takes the place of `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    except OSError as fault:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RequestError(
            f"Cannot write '{path}': {fault.strerror or fault}. Free some room or choose another --output."
        ) from fault
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DamagedFileError: the file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise DamagedFileError(f"'{path}' is missing.") from fault
    except (OSError, ValueError) as fault:
        raise DamagedFileError(f"'{path}' is damaged: {fault}.") from fault


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace `path` by a safetensors file, whole or not at all."""
    with written_whole(path) as partial:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        except SafetensorError as fault:  # the library reports a full disk as its own error
            raise OSError(None, str(fault)) from fault


def read_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  not a dictionary
    except FileNotFoundError as fault:
        raise DamagedFileError(f"'{path}' is missing.") from fault
    except (OSError, SafetensorError) as fault:
        raise DamagedFileError(f"'{path}' is damaged: {fault}.") from fault


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(value: Any) -> str:
    """Hexadecimal SHA-256 of plain data, by its canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def require_room(folder: Path, needed: int, what: str) -> None:
    """Check that the file system of `folder` has `needed` bytes left.

    Raises:
        RequestError: it has not.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RequestError(
            f"{what} needs {needed / 1e9:.2f} GB in '{folder}', but only {free / 1e9:.2f} GB are free there. "
            "Free some room or choose another --output."
        )
