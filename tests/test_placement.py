"""Large tensors lie where there is room, and where they lie changes no result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pico
from darwinlm.config import DatabaseConfig
from darwinlm.database.build import build_database
from darwinlm.database.levels import ladders
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.runtime import placement as room
from darwinlm.runtime.placement import Placement, free_host_memory

DISK = "disk"


def test_a_database_from_hidden_states_in_a_file_is_the_same(tmp_path: Path, source) -> None:
    config = DatabaseConfig(levels=6, multiple_of=8)
    tokens = pico.random_tokens(8, 32)
    bytes_of = {}
    for where in ("host", DISK):
        database = Database(tmp_path / where, {})
        stream = pico.stream(source("llama_gqa"))
        placement = Placement(pico.CPU, tmp_path / where, where)
        build_database(database, ladders(stream.source.shape, config), stream, tokens, config, placement)
        bytes_of[where] = {file.name: file.read_bytes() for file in sorted((tmp_path / where).iterdir())}
    assert bytes_of["host"] == bytes_of[DISK]  # the file of hidden states itself is gone, too


def test_a_tensor_in_a_file_holds_what_is_written(tmp_path: Path) -> None:
    tensor = Placement(pico.CPU, tmp_path / "new", DISK).empty((3, 4, 5), torch.bfloat16)
    values = torch.arange(60).view(3, 4, 5)
    tensor.copy_(values)
    assert tensor.equal(values.to(torch.bfloat16))
    assert not list((tmp_path / "new").iterdir())


def test_what_does_not_fit_into_memory_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(Placement, "_in_a_file", lambda self, shape, dtype, size: chosen.append(size))
    placement = Placement(pico.CPU, tmp_path)
    assert placement.empty((10,), torch.float32).shape == (10,)
    monkeypatch.setattr(room, "free_host_memory", lambda: 50)
    placement.empty((10,), torch.float32)
    assert chosen == [40]
    monkeypatch.setattr(room, "free_host_memory", lambda: 60)
    assert placement.empty((10,), torch.float32).shape == (10,)
    Placement(pico.CPU, tmp_path, sharers=2).empty((10,), torch.float32)
    assert chosen == [40, 40]


def test_no_room_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"only .* are free"):
        Placement(pico.CPU, tmp_path, DISK).empty((1 << 50,), torch.float32)


def test_free_memory_is_that_of_this_machine() -> None:
    assert 0 < free_host_memory() < 1 << 50


def test_pinned_memory_is_what_is_counted_and_goes_with_its_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []

    class Runtime:
        def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
            calls.append(("pin", address, size))
            return fault

        def cudaHostUnregister(self, address: int) -> int:
            calls.append(("unpin", address, 0))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    fault = 0
    tensor = room.host_tensor((3, 5, 7), torch.bfloat16, pinned=True)
    values = torch.arange(105).view(3, 5, 7).bfloat16()
    view, address = tensor.copy_(values)[1:], tensor.data_ptr()
    assert calls == [("pin", address, 210)]
    del tensor
    assert torch.equal(view, values[1:])
    assert len(calls) == 1
    del view
    assert calls[1:] == [("unpin", address, 0)]
    fault = 2
    room.host_tensor((4,), torch.float32, pinned=True)
    assert room.host_tensor((0, 4), torch.float32, pinned=True).shape == (0, 4)
    assert [what for what, *_ in calls] == ["pin", "unpin", "pin"]


GIB = 1 << 30


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("", {}, 64),
        ("0::/", {"memory.max": "max"}, 64),
        ("0::/", {"memory.max": 16, "memory.current": 10, "memory.stat": 4}, 10),  # files it caches can go
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": 16, "a/memory.current": 15, "a/memory.stat": 0}, 1),
        ("0::/a", {"a/memory.max": 16, "a/memory.current": 17, "a/memory.stat": 0}, 0),
        ("0::/../../pod", {"memory.max": 8, "memory.current": 2, "memory.stat": 0}, 6),  # seen from inside a container
        (
            "3:cpu:/x\n4:cpuacct,memory:/y\n0::/",
            {"memory/y/memory.limit_in_bytes": 9, "memory/y/memory.usage_in_bytes": 4, "memory/y/memory.stat": 1},
            6,
        ),
        ("4:memory:/", {"memory/memory.limit_in_bytes": 1 << 33, "memory/memory.usage_in_bytes": 4}, 64),  # unlimited
    ],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch, cgroup: str, files: dict[str, int | str], left: int
) -> None:
    """In GiB; the machine has 64 free."""
    (tmp_path / "proc/self").mkdir(parents=True)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, value in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        cached = f"anon 5\ninactive_file {value * GIB}\ntotal_inactive_file {value * GIB}\n" if "stat" in name else ""
        file.write_text(cached or str(value if value == "max" else int(value) * GIB))
    assert free_host_memory(tmp_path) == left * GIB
