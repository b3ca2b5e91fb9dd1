"""Odd machines: file systems without locks or flushes, full disks, pipes that break, half-set ranks. One sentence each."""

from __future__ import annotations

import ast
import errno
import io
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import darwinlm
from darwinlm.cli import main
from darwinlm.errors import RequestError
from darwinlm.runtime import files, ranks, rundir
from darwinlm.runtime import progress as progress_file
from darwinlm.runtime.files import write_text
from darwinlm.runtime.progress import log, log_to, never_silent, progress
from darwinlm.runtime.rundir import RunDirectory


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def said() -> list[str]:
    """What the log says."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, log.level = log.level, logging.INFO
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)
    log.level = level


# File systems


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, said, number):
    monkeypatch.setattr("fcntl.flock", failing(number))
    with RunDirectory(tmp_path / "run").locked():
        pass
    assert len(said) == 1
    assert "cannot be locked" in said[0]
    assert "cannot be locked" in (tmp_path / "run/log.txt").read_text()


def test_a_lock_that_is_taken_is_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", failing(errno.EWOULDBLOCK))
    with pytest.raises(RequestError, match="Another process"), RunDirectory(tmp_path / "run").locked():
        pass


def test_where_another_system_locks_it_is_asked(tmp_path, monkeypatch):
    asked: list[tuple[int, int]] = []
    windows = type(sys)("msvcrt")
    windows.LK_NBLCK, windows.locking = 2, lambda file, how, count: asked.append((how, count))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with (tmp_path / "lock").open("w") as file:
        rundir.lock_alone(file)
        windows.locking = failing(errno.EACCES)  # type: ignore[attr-defined]
        with pytest.raises(BlockingIOError):
            rundir.lock_alone(file)
    assert asked == [(2, 1)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_said_once(tmp_path, monkeypatch, said, number):
    progress_file.warn_once.cache_clear()
    flush_file = os.fsync

    def flush(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            failing(number)()
        flush_file(descriptor)

    monkeypatch.setattr(files.os, "fsync", flush)
    write_text(tmp_path / "a", "whole")
    write_text(tmp_path / "b", "whole")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["whole", "whole"]
    assert len(said) == 1
    assert os.strerror(number) in said[0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_within_a_run_is_one_message(tmp_path, number):
    told = rf"Cannot write '.*': {os.strerror(number)}\..*the same command goes on"
    with pytest.raises(RequestError, match=told), RunDirectory(tmp_path / "run").locked():
        failing(number)()


def test_other_faults_of_the_system_are_not_taken_for_the_disk(tmp_path):
    with pytest.raises(ConnectionResetError), RunDirectory(tmp_path / "run").locked():
        failing(errno.ECONNRESET)()


def test_a_line_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(RequestError, match=r"Cannot write '.*history': No space left"):
        files.append_line(tmp_path / "history", "{}")


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, said, capsys, monkeypatch):
    (tmp_path / "log.txt").mkdir()
    with log_to(tmp_path / "log.txt"):
        log.info("at work")
    assert said[0].startswith("There will be no log")
    with log_to(tmp_path / "full.txt"):
        monkeypatch.setattr(log.handlers[-1].stream, "flush", failing(errno.ENOSPC))  # type: ignore[attr-defined]
        log.info("at work")
    assert "Traceback" not in capsys.readouterr().err


# Other systems

POSIX_ALONE = {"fcntl", "resource", "pwd", "grp", "termios", "posix", "pty", "syslog"}


def test_nothing_of_one_system_is_imported_on_the_way_to_help():
    root = Path(darwinlm.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not POSIX_ALONE & set(names), path


# Ranks

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""}, "RANK is not set and MASTER_ADDR is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"RANK": "2"}, "RANK is '2'"),
    ],
)
def test_ranks_that_are_half_set_are_one_sentence(monkeypatch, capsys, change, wrong):
    for name, value in {**WHOLE, **change}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "anything"])
    assert exit_.value.code == 2
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize("world", ["", "1"])
def test_one_process_needs_no_other_variables(monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", world)
    ranks.join()
    assert ranks.world_size() == 1


def test_a_rank_without_others_is_one_process(monkeypatch, said):
    monkeypatch.setenv("LOCAL_RANK", "3")
    ranks.join()
    assert "LOCAL_RANK" not in os.environ
    assert said == ["LOCAL_RANK is set, but not what torchrun sets with it: this is one process."]
    for name, value in {**WHOLE, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    ranks.join()
    assert os.environ["LOCAL_RANK"] == "0"


# Output


class Broken(io.TextIOWrapper):
    """A stream whose other end fails."""

    def __init__(self, number: int) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")
        self.number = number

    def flush(self) -> None:
        if not self.closed:
            failing(self.number)()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, None), (errno.ENOSPC, 1), (errno.EIO, 1)])
def test_a_result_that_nobody_reads_is_no_fault_and_one_that_is_lost_is_said(monkeypatch, capsys, number, code):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    if code is None:
        main(["--version"])
        return
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == code
    assert f"could not be printed: {os.strerror(number)}" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [None, "broken"])
def test_messages_that_cannot_be_shown_end_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", Broken(errno.EPIPE) if stream else None)
    with pytest.raises(SystemExit) as exit_:
        main(["prun"])
    assert exit_.value.code == 2


def test_letters_that_a_terminal_has_not_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    with pytest.raises(SystemExit):
        main(["模型"])
    assert b"no command '\\u6a21\\u578b'" in written.getvalue()


# Progress


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(progress_file, "console", progress_file.Console(file=io.StringIO(), force_terminal=False))


def test_long_work_speaks_while_it_is_silent(monkeypatch, no_terminal, said):
    monkeypatch.setattr(progress_file, "SILENCE", 0.03)
    with never_silent():
        time.sleep(0.1)
        before = list(said)
        with progress("Search", 3) as advance:
            time.sleep(0.05)
            advance("KL 1")
            time.sleep(0.1)
    assert before
    assert all(line.startswith("At work for ") for line in before)
    assert said[len(before)] == "Search 0/3, unknown time left; 0 s at this step"
    assert any(line.startswith("Search 1/3, 0 s left; ") for line in said)
    count = len(said)
    time.sleep(0.06)
    assert len(said) == count


def test_quick_work_speaks_no_more_than_every_five_seconds(monkeypatch, no_terminal, said):
    now = [0.0]
    monkeypatch.setattr(progress_file, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: now[0])}))
    with progress("Work", 1000) as advance:
        for _ in range(1000):
            now[0] += 1 / 64
            advance("")
    assert [line.split(",")[0] for line in said] == [
        "Work 320/1000",
        "Work 640/1000",
        "Work 960/1000",
        "Work 1000/1000",
    ]


def test_many_short_works_in_a_row_are_few_lines(monkeypatch, no_terminal, said):
    now = [0.0]
    monkeypatch.setattr(progress_file, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: now[0])}))
    with never_silent():
        for _ in range(60):
            with progress("Proposals", 10) as advance:
                for _ in range(10):
                    now[0] += 0.03
                    advance("")
    assert 1 <= len(said) <= 18 / progress_file.RUSH


def test_slow_steps_within_a_tenth_are_told_every_half_minute(monkeypatch, no_terminal, said):
    now = [0.0]
    monkeypatch.setattr(progress_file, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: now[0])}))
    with progress("Work", 200) as advance:
        for _ in range(6):
            now[0] += 20
            advance("")
    assert [line.split("  ")[0] for line in said] == [
        "Work 2/200, 1 h 6 min left", "Work 4/200, 1 h 5 min left", "Work 6/200, 1 h 4 min left"
    ]  # fmt: skip


def test_sizes_read_as_people_write_them():
    assert [files.size(count) for count in (12, 4_200, 4_200_000, 2_510_000_000)] == [
        "0.01 KB",
        "4.20 KB",
        "4.20 MB",
        "2.51 GB",
    ]
