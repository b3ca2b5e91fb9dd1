"""What a person sees of long work: log lines, and a bar with the time that is left."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("darwinlm")
console = Console(stderr=True)
Advance = Callable[[str], None]


def show_log(*, speak: bool = True) -> None:
    """Send DarwinLM's log to the terminal; the command line calls this, a library user need not.

    Args:
        speak: False leaves warnings alone; for all ranks but the first.
    """
    if not any(isinstance(handler, RichHandler) for handler in log.handlers):
        handler = RichHandler(
            console=console, show_path=False, show_level=False, omit_repeated_times=False, log_time_format="[%X]"
        )
        log.addHandler(handler)
    log.setLevel(logging.INFO if speak else logging.WARNING)
    log.propagate = False


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append DarwinLM's log to a file, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Give a function that is called once per finished step with a word about it.

    On a terminal this is a bar with the time left; elsewhere a line about every tenth of the work.
    """
    if console.is_terminal and log.isEnabledFor(logging.INFO):
        with _bar() as bar:
            task = bar.add_task(title, total=total, completed=done, note="")
            yield lambda note="": bar.update(task, advance=1, note=note)
    else:
        yield _lines(title, total, done)


def _bar() -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, transient=True)


def _lines(title: str, total: int, done: int) -> Advance:
    started, first, step = time.perf_counter(), done, max(1, total // 10)

    def advance(note: str = "") -> None:
        nonlocal done
        done += 1
        if done == total or (done - first) % step == 0:
            elapsed = time.perf_counter() - started
            left = elapsed / (done - first) * (total - done)
            log.info("%s %d/%d, %s left  %s", title, done, total, duration(left), note)
            sys.stderr.flush()

    return advance


def duration(seconds: float) -> str:
    """Seconds as people write them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
