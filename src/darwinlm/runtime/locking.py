"""A lock on an open file, by what the operating system has."""

from __future__ import annotations

from typing import IO


def lock_alone(file: IO[str]) -> None:
    """Take the lock of a file until it is closed.

    Raises:
        BlockingIOError: another process has it.
        OSError: its file system has no locks, as Lustre and some NFS.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError as fault:
            raise BlockingIOError(*fault.args) from fault
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
