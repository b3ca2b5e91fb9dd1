"""Large tensors lie where there is room, and where they lie changes no result."""

from __future__ import annotations

from pathlib import Path

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
