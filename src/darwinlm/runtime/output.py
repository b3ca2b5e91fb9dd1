"""Standard output and error that outlive their reader: what cannot be shown is lost, the work is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any


class Lasting:
    """A text stream whose pipe may break, whose terminal may go and whose disk may be full.

    Args:
        stream: where the text goes; what its encoding lacks is written as an escape.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None
        with suppress(OSError, AttributeError):  # it may be broken already, or another kind of stream
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """As of any stream, but never an OSError: the last one is kept as `fault`."""
        try:
            self._stream.write(text)
        except OSError as fault:
            self.fault = fault
        return len(text)

    def flush(self) -> None:
        """The same."""
        try:
            self._stream.flush()
        except OSError as fault:
            self.fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[Lasting]:
    """Make standard output and error lasting, and give the first; streams that are closed swallow what is written."""
    before = sys.stdout, sys.stderr
    with ExitStack() as opened:
        nowhere = [None if stream else opened.enter_context(Path(os.devnull).open("w")) for stream in before]
        own = [Lasting(stream or null) for stream, null in zip(before, nowhere)]
        sys.stdout, sys.stderr = own
        try:
            yield own[0]
        finally:
            for stream in own:
                stream.flush()
                if stream.fault:  # Python's own last flush would fail, too, and be the exit code
                    _discard(stream)
            sys.stdout, sys.stderr = before


def _discard(stream: Lasting) -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
