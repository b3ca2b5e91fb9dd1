"""Files that are whole or absent, generators with names, devices, and what a person sees of long work."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors import SafetensorError

from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.runtime import files
from darwinlm.runtime import progress as progress_file
from darwinlm.runtime import timings as timings_file
from darwinlm.runtime.device import choose_device, choose_dtype, peak_memory_bytes
from darwinlm.runtime.files import (
    read_json,
    read_tensors,
    remove_folder,
    require_room,
    sha256_of,
    sha256_of_file,
    write_json,
    write_tensors,
    write_text,
    written_whole,
)
from darwinlm.runtime.progress import duration, log, log_to, progress
from darwinlm.runtime.seeds import python_random, torch_generator
from darwinlm.runtime.timings import Timings

FULL = OSError(errno.ENOSPC, "No space left on device")

# Timings


def test_what_a_stage_takes_lies_there_while_it_runs_and_a_later_process_counts_on(tmp_path, monkeypatch):
    monkeypatch.setattr(timings_file, "KEPT_EVERY", 0.01)
    file = tmp_path / "folder/timings.json"
    Timings(file).add("search", 100.0)
    began = time.perf_counter()
    with Timings(file).timed("search"):
        Timings(file).add("borrowed", 2.0)
        while (kept := read_json(file))["search"] == 100.0:
            assert time.perf_counter() < began + 60
    after = Timings(file).seconds()
    assert 100.0 < kept["search"] <= after["search"] <= 100.001 + time.perf_counter() - began
    assert after["borrowed"] == 2.0
    Timings(file).forget("search", "refit")
    assert Timings(file).seconds() == {"borrowed": 2.0}


def test_a_disk_that_is_full_for_a_while_does_not_end_what_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(timings_file, "KEPT_EVERY", 0.001)
    failed = threading.Event()

    def full(*_: Any) -> None:
        failed.set()
        raise RequestError("full")

    with Timings(tmp_path / "timings.json").timed("search"), monkeypatch.context() as patch:
        patch.setattr(timings_file, "write_json", full)
        assert failed.wait(60)
    assert Timings(tmp_path / "timings.json").seconds()["search"] > 0


# Files


def fail_halfway(file: Path, fault: BaseException) -> None:
    with written_whole(file) as partial:
        partial.write_text("half of the n")
        raise fault


def raiser(fault: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    return fail


@pytest.mark.parametrize(
    ("fault", "seen"),
    [(FULL, RequestError), (KeyboardInterrupt(), KeyboardInterrupt), (ValueError("ours"), ValueError)],
    ids=["disk", "interrupt", "fault"],
)
@pytest.mark.parametrize("old", ["old", None])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, fault: BaseException, seen: type[BaseException], old: str | None
) -> None:
    file = tmp_path / "a.json"
    if old:
        file.write_text(old)
    with pytest.raises(seen):
        fail_halfway(file, fault)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"a.json": old} if old else {})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_text(tmp_path / "a", "old")
    with monkeypatch.context() as patched:
        patched.setattr(files.os, step, raiser(FULL))
        with pytest.raises(RequestError, match=r"Cannot write '.*a': No space left.*--output"):
            write_text(tmp_path / "a", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_written_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for step in ("fsync", "replace"):
        done = getattr(files.os, step)
        monkeypatch.setattr(files.os, step, lambda *args, step=step, done=done: (steps.append(step), done(*args)))
    write_text(tmp_path / "deep" / "er" / "a", "ü\n")
    assert steps == ["fsync", "replace", "fsync"]
    assert (tmp_path / "deep" / "er" / "a").read_bytes() == b"\xc3\xbc\n"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match=r"Cannot write.*--output"):
        write_json(tmp_path / "file" / "a.json", 1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=20)
@given(JSON)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "value.json"
    write_json(file, value)
    assert read_json(file) == value


@pytest.mark.parametrize("read", [read_json, read_tensors])
@pytest.mark.parametrize("content", [None, b"", b'{"cut": ', b"\xff\xfe\x00", b"\x08" + bytes(7) + b"no head!"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, read: Callable[[Path], Any], content: bytes | None) -> None:
    file = tmp_path / "a.file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{file}' is {'missing' if content is None else 'damaged'}"):
        read(file)


def test_tensors_are_as_open_to_others_as_any_file(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "")
    write_tensors(tmp_path / "tensors", {"a": torch.ones(2)})
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "text").stat().st_mode


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(3, 4)
    tensors = {
        "turned": table.T,
        "part": table[:, 1:3],
        "ids": torch.tensor([1, 2]),
        "half": table.bfloat16(),
        "none": table[:0],
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"made": "here"})
    found, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"made": "here"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize("fault", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")])
def test_tensors_on_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    write_tensors(tmp_path / "a.safetensors", {"old": torch.ones(1)})
    monkeypatch.setattr(files, "save_file", raiser(fault))
    with pytest.raises(RequestError, match=r"Cannot write '.*a\.safetensors': .*No space left on device.*--output"):
        write_tensors(tmp_path / "a.safetensors", {"new": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert "old" in read_tensors(tmp_path / "a.safetensors")[0]


def test_a_cut_tensor_file_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.ones(100)})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=r"a\.safetensors' is damaged"):
        read_tensors(file)


def test_room_is_asked_for_in_folders_that_are_yet_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "not" / "yet"
    monkeypatch.setattr(shutil, "disk_usage", {tmp_path: SimpleNamespace(free=2_500_000_000)}.__getitem__)
    require_room(folder, 2_500_000_000, "The database")
    with pytest.raises(
        RequestError, match=r"The database needs 2\.51 GB in '.*yet', but only 2\.50 GB are free.*--output"
    ):
        require_room(folder, 2_510_000_000, "The database")


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2
    assert sha256_of({"b": [1, None], "a": "x"}) == sha256_of(json.loads('{"a": "x", "b": [1, null]}'))
    assert sha256_of({"a": 1}) != sha256_of({"a": 2})
    assert sha256_of(1) == hashlib.sha256(b"1").hexdigest()


# Generators

NAMES = [
    (0, "mutation", 0),
    (1, "mutation", 0),
    (0, "train", 0),
    (0, "mutation", 1),
    (0, "mutation"),
    (0, "mutation", 0, 0),
    (-1, "mutation", 0),
]


def torch_values(*name: Any) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=torch_generator(*name)).tolist())


def python_values(*name: Any) -> tuple[float, ...]:
    rng = python_random(*name)
    return tuple(rng.random() for _ in range(4))


@pytest.mark.parametrize("values", [torch_values, python_values])
def test_a_generator_depends_on_its_name_alone(values: Callable[..., tuple[float, ...]]) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        found.append([values(*name) for name in (NAMES if seed else reversed(NAMES))])
    assert found[0][::-1] == found[1]
    assert len(set(found[1])) == len(NAMES)


@pytest.mark.parametrize("values", [torch_values, python_values])
def test_making_generators_leaves_the_global_ones_alone(values: Callable[..., tuple[float, ...]]) -> None:
    before = torch.get_rng_state(), random.getstate()
    values(0, "mutation", 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


# Device


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "local_rank", "chosen", "made_current"),
    [("cuda:1", None, "cuda:1", ["cuda:1"]), ("auto", "3", "cuda:3", ["cuda:3"]), ("auto", None, "cuda", [])],
)
def test_a_gpu_that_is_chosen_is_the_current_one(monkeypatch, asked, local_rank, chosen, made_current):
    """What captures a graph, or asks for a stream by no device's name, works there."""
    current: list[str] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, dtype: zeros(*shape, dtype=dtype))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert str(choose_device(asked)) == chosen
    assert current == made_current


def test_float32_products_are_float32_whatever_the_environment_says():
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    choose_device("cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("name", ["nonsense", "", "CPU", "cuda:99", "xpu", "hpu"])
def test_a_device_that_is_not_here_is_named_with_a_way_out(name: str) -> None:
    with pytest.raises(RequestError, match=f"Device '{name}' cannot be used .*cpu"):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cuda", torch.bfloat16),
        ("auto", "cpu", torch.float32),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_dtype_follows_the_device_unless_it_is_named(name: str, device: str, dtype: torch.dtype) -> None:
    assert choose_dtype(name, torch.device(device)) == dtype


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the truth is asked of Linux")
def test_peak_memory_is_in_bytes() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    truth = int(status["VmHWM"].split()[0]) * 1024
    assert (
        0.9 < peak_memory_bytes(torch.device("cpu")) / truth < 100
    )  # a parent's peak may be in it; a wrong unit is not


# Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only when told to, and no terminal."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress_file, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(progress_file, "console", Console(file=io.StringIO(), force_terminal=False))
    return now


def lines_of(folder: Path, clock: SimpleNamespace, total: int, done: int, seconds: float) -> list[str]:
    """What the log file holds after work that takes `seconds` a step; without dates."""
    with log_to(folder / "log.txt"), progress("Work", total, done) as advance:
        for step in range(done, total):
            clock.seconds += seconds
            advance(f"at {step}")
    return [line.split(" ", 2)[2] for line in (folder / "log.txt").read_text().splitlines()]


def test_without_a_terminal_every_tenth_is_a_line_with_the_time_left(tmp_path: Path, clock: SimpleNamespace) -> None:
    lines = lines_of(tmp_path, clock, total=30, done=0, seconds=10)
    assert lines[0] == "Work 3/30, 4 min 30 s left  at 2"
    assert lines[-2:] == ["Work 27/30, 30 s left  at 26", "Work 30/30, 0 s left  at 29"]
    assert len(lines) == 10


def test_continued_work_tells_the_time_left_by_its_own_steps(tmp_path: Path, clock: SimpleNamespace) -> None:
    lines = lines_of(tmp_path, clock, total=4, done=2, seconds=60)
    assert lines == ["Work 3/4, 1 min 0 s left  at 2", "Work 4/4, 0 s left  at 3"]


@pytest.mark.parametrize("total", [1, 7, 25, 99])
def test_the_end_of_the_work_is_always_said_and_once(tmp_path: Path, clock: SimpleNamespace, total: int) -> None:
    lines = lines_of(tmp_path, clock, total, done=0, seconds=max(1, 5 / total))
    assert sum(line.startswith(f"Work {total}/{total},") for line in lines) == 1
    assert len(lines) <= 13


def test_on_a_terminal_there_is_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress_file, "console", Console(file=screen, force_terminal=True, width=120))
    with log_to(tmp_path / "log.txt"), progress("Work", 3, done=1) as advance:
        advance("KL 0.5")
        advance("KL 0.4")
    assert "Work" in screen.getvalue()
    assert "3/3" in screen.getvalue()


def test_a_log_file_is_appended_to_and_let_go(tmp_path: Path) -> None:
    for message in ("first", "second"):
        with log_to(tmp_path / "below" / "log.txt"):
            log.info(message)
    log.info("no longer")
    assert [line.rsplit(" ", 1)[1] for line in (tmp_path / "below" / "log.txt").read_text().splitlines()] == [
        "first",
        "second",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.8, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
def test_a_duration_is_off_by_less_than_its_last_unit(seconds: float) -> None:
    words = duration(seconds).split()
    told = sum(int(count) * {"s": 1, "min": 60, "h": 3600}[unit] for count, unit in zip(words[::2], words[1::2]))
    assert abs(told - seconds) < (61 if "h" in words else 1)


def test_a_kill_leaves_a_folder_whole_or_gone(tmp_path, monkeypatch):
    (folder := tmp_path / "model").mkdir()
    (folder / "weights").write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **more: None if more else pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            remove_folder(folder)
    assert not folder.exists()
    folder.mkdir()
    remove_folder(folder)
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []
