"""What a person sees of long work: log lines, and a bar or lines with the time that is left."""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from darwinlm.runtime.background import beside
from darwinlm.runtime.output import harmless


def _harmless(record: logging.LogRecord) -> bool:
    """Names that a message holds may hold anything."""
    record.msg, record.args = harmless(record.getMessage()), ()
    return True


log = logging.getLogger("darwinlm")
log.addFilter(_harmless)
console = Console(stderr=True)
Advance = Callable[[str], None]
SILENCE, RUSH = 30.0, 5.0
"""Seconds: without a terminal, the log is never silent for longer, and progress never speaks sooner after another line."""


def show_log(*, speak: bool = True) -> None:
    """Send DarwinLM's log to the terminal; the command line calls this, a library user need not.

    Args:
        speak: False leaves warnings alone; for all ranks but the first.
    """
    if not any(isinstance(handler, RichHandler) for handler in log.handlers):
        log.addHandler(_Lines(console=console))
    log.setLevel(logging.INFO if speak else logging.WARNING)
    log.propagate = False


class _Lines(RichHandler):
    """A line for each message, above the bar; however long it is, the terminal alone breaks it, so its paths can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        clock = datetime.fromtimestamp(record.created).strftime("[%X]")
        self.console.print(Text(f"{clock} {self.format(record)}"), soft_wrap=True)


class _LogFile(logging.FileHandler):
    """A log whose disk may be full: the work goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@functools.cache
def warn_once(message: str) -> None:
    """Warn, unless this process has said so before: the same text or checkpoint is read several times."""
    log.warning("%s", message)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append DarwinLM's log to a file, too; where that cannot be written, a warning says so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as fault:
        log.warning("There will be no log in '%s': %s.", path, fault.strerror)
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _Pace:
    """How far work is, and how long the rest takes at the rate of what was done here."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.first, self.done = title, total, done, done
        self.began = self.stepped = time.perf_counter()

    def step(self) -> None:
        self.done, self.stepped = self.done + 1, time.perf_counter()

    @property
    def left(self) -> str:
        if self.done == self.first:
            return "unknown time"
        rest = (self.stepped - self.began) / (self.done - self.first) * (self.total - self.done)
        return duration(max(0.0, rest - (time.perf_counter() - self.stepped)))

    def __str__(self) -> str:
        return f"{self.title} {self.done}/{self.total}, {self.left} left"


class _Pulse(logging.Filter):
    """Knows when the log last spoke and what is under way; says so from a thread where the log is silent for too long."""

    def __init__(self) -> None:
        super().__init__()
        self.spoke, self.beats, self.open = 0.0, False, list[_Pace]()

    def filter(self, record: logging.LogRecord) -> bool:
        self.spoke = time.perf_counter()
        return True

    def beat(self, ended: threading.Event) -> None:
        began = time.perf_counter()
        while not ended.wait(max(0.01, self.spoke + SILENCE - time.perf_counter())):
            if time.perf_counter() < self.spoke + SILENCE:
                continue
            pace = self.open[-1] if self.open else None
            since = duration(time.perf_counter() - (pace.stepped if pace else began))
            log.info("%s", f"{pace}; {since} at this step" if pace else f"At work for {since}")


_pulse = _Pulse()
log.addFilter(_pulse)


@contextmanager
def never_silent() -> Iterator[None]:
    """Where no terminal is, let the log say every `SILENCE` seconds that the work goes on, unless it spoke anyway."""
    if _pulse.beats or console.is_terminal or not log.isEnabledFor(logging.INFO):
        yield
        return
    _pulse.spoke, _pulse.beats = time.perf_counter(), True
    try:
        with beside(_pulse.beat, "pulse"):
            yield
    finally:
        _pulse.beats = False


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Give a function that is called once per finished step with a word about it.

    On a terminal this is a bar with the time left; elsewhere a line about every tenth of the work, at least every `SILENCE`
    seconds, and no sooner than `RUSH` after the last line of the log, so that many short works in a row are a few lines.
    """
    pace = _Pace(title, total, done)
    if console.is_terminal and log.isEnabledFor(logging.INFO):
        with _bar() as bar:
            task = bar.add_task(title, total=total, completed=done, note="", pace=pace)

            def advance(note: str = "") -> None:
                pace.step()
                bar.update(task, advance=1, note=note)

            yield advance
        return
    with never_silent():
        _pulse.open.append(pace)
        try:
            yield _lines(pace)
        finally:
            _pulse.open.remove(pace)


class _TimeLeft(ProgressColumn):
    """By all steps that were done here: the library forgets those that are older than half a minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['pace'].left} left")


def _bar() -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _TimeLeft(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=console, transient=True)


def _lines(pace: _Pace) -> Advance:
    tenth, said = max(1, pace.total // 10), pace.first

    def advance(note: str = "") -> None:
        nonlocal said
        pace.step()
        silent, ended = pace.stepped - _pulse.spoke, pace.done == pace.total
        told = ended and pace.stepped >= pace.began + RUSH  # the end of what took a while is always said
        if told or silent >= SILENCE or (silent >= RUSH and (ended or pace.done - said >= tenth)):
            log.info("%s  %s", pace, note)
            said = pace.done

    return advance


def duration(seconds: float) -> str:
    """Seconds as people write them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
