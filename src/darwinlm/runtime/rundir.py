"""The run directory: what lies where, who may write, and whether it belongs to what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from darwinlm.config import read_yaml
from darwinlm.errors import RequestError
from darwinlm.runtime.files import disk_faults_told, require_folder, write_text
from darwinlm.runtime.progress import log, log_to
from darwinlm.runtime.timings import Timings


class RunDirectory:
    """A folder that holds one run: paths, lock, settings and timings.

    Args:
        path: the folder; made when it is first locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.blocks = path / "blocks.safetensors"
        self.database = path / "database"
        self.search = path / "search"
        self.genome = path / "genome.json"
        self.refit = path / "refit"
        self.model = path / "model"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.timings = Timings(path / "timings.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that writes here, and log to `log.txt`.

        Raises:
            RequestError: the folder cannot be made, holds something else, or another process is writing to it.
        """
        try:
            foreign = self.path.is_dir() and any(self.path.iterdir()) and not (self.path / ".lock").exists()
            if foreign and not self.config.exists():
                raise RequestError(f"'{self.path}' holds files that are no run of DarwinLM. Choose another --output.")
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as fault:
            raise RequestError(f"Cannot write to '{self.path}': {fault.strerror}. Choose another --output.") from fault
        with lock, disk_faults_told(self.path), log_to(self.path / "log.txt"):
            try:
                lock_alone(lock)
            except BlockingIOError as fault:
                raise RequestError(
                    f"Another process is working in '{self.path}'. Wait for it, or choose another --output."
                ) from fault
            except OSError as fault:
                log.warning(
                    "'%s' cannot be locked (%s): see to it that no second process works there.",
                    self.path,
                    fault.strerror,
                )
            yield

    def settings(self) -> dict[str, Any]:
        """The settings of the run that lies here; empty where there is none."""
        return read_yaml(self.config) if self.config.exists() else {}

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Write `config.yaml`."""
        text = yaml.safe_dump(settings, sort_keys=False)
        if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
            write_text(self.config, text)


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


def results_folder(model: str, output: str) -> Path | None:
    """Where results about a checkpoint go: what is asked for, else its run directory; None where neither is.

    Raises:
        RequestError: nothing can be written into what is asked for.
    """
    if output:
        require_folder(folder := Path(output).expanduser())
        return folder
    run = RunDirectory(Path(model).expanduser().resolve().parent)
    return run.path if run.config.exists() else None


def require_same(stored: dict[str, Any], asked: dict[str, Any], where: Path, what: str, remedy: str) -> None:
    """Check that what lies in a run was made from what is asked now.

    Raises:
        RequestError: it was not; names every setting that differs.
    """
    differing = [key for key in {**stored, **asked} if stored.get(key) != asked.get(key)]
    if differing:
        listed = "; ".join(
            f"{key}: there {_short(stored.get(key))}, asked {_short(asked.get(key))}" for key in differing
        )
        raise RequestError(f"'{where}' holds {what} made from something else ({listed}). {remedy}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
