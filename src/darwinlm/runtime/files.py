"""Files that are whole or absent: written beside, flushed to the disk, then renamed."""

import errno
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
from darwinlm.runtime.progress import warn_once

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
"""Faults of a disk, not of a program."""
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
"""What systems answer that cannot flush a folder, or anything: CIFS, FUSE, Windows."""


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
        raise _unwritten(path, fault) from fault
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def disk_faults_told(folder: Path) -> Iterator[None]:
    """Turn a disk that fails under any of the work within into one message.

    Raises:
        RequestError: the disk is full, read-only or broken.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno not in _DISK:
            raise
        where = fault.filename or folder
        raise RequestError(
            f"Cannot write '{where}': {fault.strerror}. Free some room, and the same command goes on from here; or choose "
            "another --output."
        ) from fault


def flush(path: Path) -> None:
    """Force a file or folder to the disk; where its file system cannot, that is said once."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as fault:
        if fault.errno not in _NO_FLUSH:
            raise
        warn_once(
            f"The file system of this folder cannot flush everything to the disk ({fault.strerror}). The work goes on; after a "
            "power cut its last files may have to be made again."
        )


def append_line(path: Path, line: str) -> None:
    """Add a line to a file and flush it.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        flush(path)
    except OSError as fault:
        raise _unwritten(path, fault) from fault


def _unwritten(path: Path, fault: OSError) -> RequestError:
    return RequestError(f"Cannot write '{path}': {fault.strerror or fault}. Free some room or choose another --output.")


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
    except (OSError, ValueError, RecursionError) as fault:
        raise DamagedFileError(f"'{path}' is damaged: {fault}.") from fault


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, none where there is no file; a last one that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace `path` by a safetensors file, whole or not at all; as open to others as any file (the library's are not)."""
    with written_whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
            partial.chmod(mode)
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


class CheckedTensors:
    """Tensors of safetensors files, each read whole before it is used for the first time, and again where it was changed since.

    Args:
        remedy: what helps where a file is damaged.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self._seen: dict[Path, tuple[int, int, int]] = {}
        """Of the files whose bytes were found right in this process, what they were then."""

    def read(self, path: Path, sha256: str, name: str) -> Tensor:
        """A tensor of a file that has this SHA-256.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        try:
            found = path.stat()
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if self._seen.get(path) != stamp:
                if sha256_of_file(path) != sha256:
                    raise OSError("its bytes are not those that were written")
                self._seen[path] = stamp
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).clone()
        except (OSError, SafetensorError) as fault:
            raise DamagedFileError(f"'{path}' is missing or damaged: {fault}. {self.remedy}") from fault


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


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there. A kill leaves it whole or gone; what is left of it then, hidden beside it, goes with the
    next one of its name."""
    rest = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(rest, ignore_errors=True)
    if folder.exists():
        folder.rename(rest)
        shutil.rmtree(rest)


def require_folder(folder: Path) -> None:
    """Check that results can be put into a folder.

    Raises:
        RequestError: a file is in its place, or nothing may be written there.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise RequestError(f"'{existing}' is a file; --output is a folder. Choose another --output.")
    if not os.access(existing, os.W_OK):
        raise RequestError(f"Nothing may be written into '{existing}'. Choose another --output.")


def require_room(folder: Path, needed: int, what: str) -> None:
    """Check that the file system of `folder` has `needed` bytes left.

    Raises:
        RequestError: it has not.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RequestError(
            f"{what} needs {size(needed)} in '{folder}', but only {size(free)} are free there. "
            "Free some room or choose another --output."
        )


def size(count: int) -> str:
    """Bytes as people write them: 2.51 GB, 4.20 MB."""
    unit, name = next(
        (unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")) if count >= unit / 100 or unit == 1e3
    )
    return f"{count / unit:.2f} {name}"
