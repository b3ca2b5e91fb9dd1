"""What stages took, kept while they run, so that a killed process leaves what it spent to the one that goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.runtime import ranks
from darwinlm.runtime.background import beside
from darwinlm.runtime.files import read_json, write_json
from darwinlm.runtime.progress import warn_once

KEPT_EVERY = 10.0
"""Seconds that a kill can hide."""
_writing = threading.Lock()


class Timings:
    """`timings.json`: {stage: seconds so far}, written by the first rank.

    Args:
        file: where it lies, or is to lie.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that a stage takes, also when it is interrupted; from the beginning it is told that it is under way."""
        if not ranks.is_first():
            yield
            return
        before, began = self.seconds().get(stage, 0.0), time.perf_counter()

        def keep() -> None:
            self._replace(stage, before + time.perf_counter() - began)

        def keep_on(ended: threading.Event) -> None:
            while not ended.wait(KEPT_EVERY):
                with suppress(RequestError):  # a full disk is told where the work itself writes
                    keep()

        keep()
        try:
            with beside(keep_on, "timings"):
                yield
        finally:
            keep()

    def add(self, stage: str, seconds: float) -> None:
        """Count what was spent elsewhere."""
        if ranks.is_first():
            self._replace(stage, self.seconds().get(stage, 0.0) + seconds)

    def _replace(self, stage: str, seconds: float) -> None:
        with _writing:
            write_json(self.file, {**self.seconds(), stage: round(seconds, 3)})

    def forget(self, *stages: str) -> None:
        """Drop stages that begin anew."""
        with _writing:
            write_json(self.file, {stage: taken for stage, taken in self.seconds().items() if stage not in stages})

    def seconds(self) -> dict[str, float]:
        """Seconds that each stage has taken so far."""
        try:
            return dict(read_json(self.file)) if self.file.exists() else {}
        except (DamagedFileError, TypeError, ValueError):
            warn_once(f"'{self.file}' is damaged: the seconds of stages that are done are lost.")
            return {}
