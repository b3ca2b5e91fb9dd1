"""Standard output and error that outlive their reader, and text as it is: names are neither markup nor escape codes."""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text


class PlainConsole(Console):
    """A console for text of others: square brackets and colons mean nothing, control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As of any console."""
        return super().render_str(harmless(text), **options)

    def show(self, *things: Any) -> None:
        """Print tables and sentences; a path in a sentence is never broken into lines."""
        for thing in things:
            self.print(thing, soft_wrap=isinstance(thing, str))


def harmless(text: str) -> str:
    """Text whose control characters, which could steer a terminal or hide letters, are written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in "\n\t\u200c\u200d" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )


def pasted(*words: Any) -> str:
    """Words of a command, or a path, as a shell takes them."""
    return shlex.join(str(word) for word in words)


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
