"""Hub data sets: names with splits, connections that break and come back, and what is known of a data set's size."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pytest

import pico
from darwinlm.cli import main
from darwinlm.data import hub
from darwinlm.data.sources import documents, known_tokens
from darwinlm.data.stream import PackedStream
from darwinlm.errors import InterruptedReading, RequestError

ROWS = [f"row {number}" for number in range(100)]
BREAKS = [
    httpx2.ReadTimeout("timed out"),
    FileNotFoundError("zstd://a::hf://b"),
    ConnectionResetError(),
    TimeoutError(),
]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", found.append)
    return found


class Broken:
    """A real streamed data set whose connections break after so many rows, each after its own."""

    def __init__(self, folder: Path, breaks: list[tuple[int, Exception]]) -> None:
        self.path, self.breaks, self.asked, self.read = folder / "rows.jsonl", breaks, [], 0
        self.path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))

    def load(self, *names: str, **options: Any) -> Any:
        self.asked.append((names, options))
        data = REAL("json", data_files=str(self.path), split="train", streaming=True)
        row, fault = self.breaks.pop(0) if self.breaks else (10**9, None)
        plain, outer = type(data).__iter__, self

        class Breaking(type(data)):
            def __iter__(self):
                for number, value in enumerate(plain(self)):
                    if number == row and fault:
                        raise fault
                    outer.read += 1
                    yield value

        data.__class__ = Breaking
        return data


REAL = datasets.load_dataset


@pytest.mark.parametrize("fault", BREAKS, ids=lambda fault: type(fault).__name__)
def test_it_goes_on_where_it_broke(tmp_path, monkeypatch, waits, fault):
    """No row twice, none lost; and rows before the last mark are not read again."""
    monkeypatch.setattr(hub, "MARKED_ROWS", 10)
    data = Broken(tmp_path, [(37, fault), (0, fault), (55, fault)])
    monkeypatch.setattr("datasets.load_dataset", data.load)
    assert list(documents("owner/name:set:train_sft", "text")) == ROWS
    assert data.asked == [(("owner/name",), {"name": "set", "split": "train_sft", "streaming": True})] * 4
    assert data.read <= len(ROWS) + 3 * 10
    assert waits == [*hub.WAITS[:2], hub.WAITS[0]]


def test_tries_are_bounded_and_the_exit_code_is_1(tmp_path, monkeypatch, waits, checkpoint, capsys):
    fault = httpx2.ReadTimeout("timed out")
    data = Broken(tmp_path, [(10, fault), *[(0, fault)] * 50])
    monkeypatch.setattr("datasets.load_dataset", data.load)
    with pytest.raises(InterruptedReading, match="broke off after 10 rows"):
        list(documents("owner/name", "text"))
    assert waits == list(hub.WAITS)
    data.breaks = [(10, fault), *[(0, fault)] * 50]
    with pytest.raises(SystemExit) as exit_:
        main(["eval", str(checkpoint("llama_gqa")), "--data", "owner/name", "--blocks.sequence_length", "32"])
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "The same command goes on" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "fault",
    [
        httpx2.ProxyError("403 Forbidden"),
        httpx2.ConnectTimeout("slow"),
        RuntimeError("scripts are no longer supported"),
    ],
)
def test_what_cannot_be_had_at_all_is_one_sentence(tmp_path, monkeypatch, waits, fault):
    monkeypatch.setattr("datasets.load_dataset", Broken(tmp_path, [(0, fault)]).load)
    with pytest.raises(RequestError, match=r"owner/name:configuration:split") as caught:
        list(documents("owner/name", "text"))
    assert str(fault) in str(caught.value)
    assert not waits


@pytest.mark.parametrize(
    ("name", "asked"),
    [("a/b", (None, "train")), ("a/b:c", ("c", "train")), ("a/b:c:d", ("c", "d")), ("a/b::d", (None, "d"))],
)
def test_names(tmp_path, monkeypatch, name, asked):
    data = Broken(tmp_path, [])
    monkeypatch.setattr("datasets.load_dataset", data.load)
    assert list(itertools.islice(documents(name, "text"), 3)) == ROWS[:3]
    assert (data.asked[0][1]["name"], data.asked[0][1]["split"]) == asked


@pytest.mark.parametrize("name", ["a/b:c:d:e", "corpus/01.jsonl.gz", "./a/b", "a/b c"])
def test_no_names(name):
    with pytest.raises(RequestError, match="There is no text at"):
        documents(name, "text")


def test_more_than_a_data_set_has_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", None)
    assert known_tokens("fineweb-edu") == known_tokens("fineweb-edu=3") == 100_000_000_000
    assert known_tokens("fineweb-edu,stdlib") is None
    stream = PackedStream("fineweb-edu", "text", pico.tokenizer(), 1000, 8, seed=0)
    with pytest.raises(RequestError, match=r"has 100,000,000,000 tokens .* but 200,000,000,000 are asked"):
        stream.require(200_000_000_000)
