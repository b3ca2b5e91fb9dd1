"""Text from everywhere, cut into blocks, in splits that share nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from darwinlm.config import BlocksConfig
from darwinlm.data import stdlib
from darwinlm.data.blocks import SPLITS, drawn_interleaved, make_splits, settings_of_split
from darwinlm.data.sources import documents
from darwinlm.data.stdlib import is_held_out, stdlib_documents
from darwinlm.data.tokens import read_pool
from darwinlm.errors import RequestError

END, BEGIN = 0, 1


class CharTokenizer:
    """A token per character; like a real one, it puts a special token in front unless told not to."""

    def __init__(self, eos_token_id: int | None = END) -> None:
        self.eos_token_id = eos_token_id

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True, **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[BEGIN] * add_special_tokens + list(map(ord, text)) for text in texts]}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def read(source: Any, text_field: str = "text", **options: Any) -> list[str]:
    return list(documents(str(source), text_field, **options))


# Files


def test_a_txt_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Zwölf Boxkämpfer\n\njagen Viktor", encoding="utf-8")
    assert read(file) == ["Zwölf Boxkämpfer\n\njagen Viktor"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("field", ["text", "content"])
def test_structured_files_give_a_field_of_every_row(tmp_path: Path, suffix: str, field: str) -> None:
    texts = [f"text {i} ü\n" for i in range(100)]
    file = write(tmp_path / f"a.{suffix}", ({"id": i, field: text} for i, text in enumerate(texts)))
    assert read(file, field) == texts


def test_a_folder_is_all_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "c.parquet", [{"text": "third"}])
    write(tmp_path / "b.jsonl", [{"text": "second"}, {"text": "and more"}])
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "d.md").write_text("fourth")
    assert read(tmp_path) == ["first", "second", "and more", "third", "fourth"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", [{"body": "x", "url": "y"}, {"body": "x", "url": "y", "text": 5}])
def test_a_field_without_text_is_an_error_that_lists_the_fields(
    tmp_path: Path, suffix: str, row: dict[str, Any]
) -> None:
    file = write(tmp_path / f"a.{suffix}", [row])
    with pytest.raises(RequestError, match=r"'text'.*blocks\.text_field.*body, url") as caught:
        read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("line", ['{"text": "cut o', "plain words", '["a list"]', '"a string"'])
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(RequestError, match=r"a\.jsonl'.*line 3"):
        read(file)


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes('{"text": "Zwölf"}'.encode("latin-1"))
    with pytest.raises(RequestError, match=f"a.{suffix}' is not UTF-8"):
        read(file)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [{"text": "x" * 100}])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RequestError, match=r"a\.parquet"):
        read(file)


def test_what_is_no_source_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    for source, reason in [
        ("empty", r"holds no \.txt"),
        ("a.pdf", "no kind that can be read"),
        ("gone.txt", "There is no text at"),
    ]:
        with pytest.raises(RequestError, match=reason) as caught:
            documents(str(tmp_path / source), "text")
        assert source in str(caught.value)


@pytest.mark.parametrize("source", ["nonsense", "./a/b", "~/b", "a/b/c", "texts/a.jsonl"])
def test_a_missing_path_is_not_looked_up_on_the_hub(source: str, hub: list[Any]) -> None:
    with pytest.raises(RequestError):
        read(source)
    assert hub == []


# Hub data sets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `load_dataset` was asked for; there it finds ten documents of rising score, the last without a text."""
    asked: list[Any] = []

    def load_dataset(*names: str, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append((names, options))
        yield from ({"text": f"{score}", "language_score": score / 10} for score in range(10))
        yield {"words": "no text", "language_score": 1.0}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def test_a_hub_data_set_is_streamed(hub: list[Any]) -> None:
    found = list(itertools.islice(documents("owner/set", "text"), 10))
    assert found == list("0123456789")
    assert hub == [(("owner/set",), {"name": None, "split": "train", "streaming": True})]


def test_fineweb_edu_keeps_documents_scored_at_least_0_9(hub: list[Any]) -> None:
    found = documents("fineweb-edu", "text")
    assert next(found) == "9"
    with pytest.raises(RequestError, match=r"fineweb-edu.*'text'.*words"):
        next(found)
    assert hub == [(("HuggingFaceFW/fineweb-edu",), {"name": "sample-100BT", "split": "train", "streaming": True})]


@pytest.mark.parametrize(
    "fault",
    [ConnectionError("no route\nto host"), TimeoutError(), ValueError("Unknown split 'train'"), OSError(5, "x")],
)
def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(RequestError, match=r"'owner/set' cannot be read.*connection"):
        read("owner/set")


# Blocks

TEXTS = st.lists(st.text(st.characters(min_codepoint=2, max_codepoint=500), min_size=1, max_size=12), max_size=8)


@given(texts=TEXTS, length=st.integers(1, 7), at_most=st.integers(0, 60), end=st.sampled_from([END, None]))
def test_blocks_are_the_stream_of_documents_cut_at_every_length(
    texts: list[str], length: int, at_most: int, end: int | None
) -> None:
    joined = ("" if end is None else chr(end)).join(texts)[:at_most]
    truth = [list(map(ord, joined[i : i + length])) for i in range(0, len(joined) - length + 1, length)]
    blocks = read_pool(texts, CharTokenizer(end), length, at_most).blocks
    assert blocks.tolist() == truth
    assert blocks.dtype == torch.int64
    assert blocks.shape[1] == length


def test_reading_stops_when_there_is_enough() -> None:
    taken = itertools.count()
    endless = (f"document {next(taken)}" for _ in itertools.count())
    assert read_pool(endless, CharTokenizer(), 10, 1000).blocks.shape == (100, 10)
    assert next(taken) < 200


# Splits


def numbered(path: Path, count: int, first: int = 0x1000) -> Path:
    """A text in which every character occurs once, so that two blocks are disjoint or the same."""
    path.write_text("".join(map(chr, range(first, first + count))), encoding="utf-8")
    return path


def config(**changes: Any) -> BlocksConfig:
    return BlocksConfig(
        **{"sequence_length": 4, "hessian": 8, "train": 5, "select": 3, "held_out": 2, "pool_tokens": 1, **changes}
    )


def test_splits_are_disjoint_blocks_of_the_source(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a.txt", 4 * 30)
    splits = make_splits(str(source), config(pool_tokens=4 * 30), CharTokenizer(), seed=0)
    assert [getattr(splits, name).shape for name in SPLITS] == [(8, 4), (5, 4), (3, 4), (2, 4)]
    blocks = [tuple(block) for name in SPLITS for block in getattr(splits, name).tolist()]
    assert len({token for block in blocks for token in block}) == 4 * 18
    assert set(blocks) <= {tuple(range(i, i + 4)) for i in range(0x1000, 0x1000 + 120, 4)}
    assert blocks != sorted(blocks)  # drawn at random, not read off


def test_splits_depend_on_the_seed_alone(tmp_path: Path) -> None:
    source = str(numbered(tmp_path / "a.txt", 4 * 30))
    first, again, other = (make_splits(source, config(pool_tokens=120), CharTokenizer(), seed) for seed in (3, 3, 4))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in SPLITS)
    assert not any(torch.equal(getattr(first, name), getattr(other, name)) for name in SPLITS)


@given(st.lists(st.integers(1, 9), min_size=4, max_size=4), st.integers(0, 40), st.integers(0, 20), st.integers(1, 9))
def test_a_split_does_not_depend_on_those_after_it(counts: list[int], pool: int, more: int, changed: int) -> None:
    there = max(pool, sum(counts)) + more
    drawn = dict(drawn_interleaved(dict(zip(SPLITS, counts)), pool, there, seed=0))
    assert [len(drawn[name]) for name in SPLITS] == counts
    assert len(set(torch.cat(list(drawn.values())).tolist())) == sum(counts)
    for place, name in enumerate(SPLITS[1:], 1):
        other = {**dict(zip(SPLITS, counts)), name: changed}
        longer = dict(drawn_interleaved(other, pool, max(there, sum(other.values())), seed=0))
        assert all(torch.equal(longer[before], drawn[before]) for before in SPLITS[:place])


def test_the_settings_of_a_split_are_those_that_change_it(tmp_path: Path) -> None:
    source, apart = str(numbered(tmp_path / "a.txt", 4 * 200)), str(numbered(tmp_path / "b.txt", 100, first=0x3000))
    for known in (config(pool_tokens=160), config(pool_tokens=160, held_out_data=apart)):
        before = make_splits(source, known, CharTokenizer(), seed=0)
        for change in ({"hessian": 9}, {"train": 6}, {"select": 4}, {"held_out": 3}, {"pool_tokens": 400}):
            other = replace(known, **change)
            after = make_splits(source, other, CharTokenizer(), seed=0)
            for name in SPLITS:
                same = settings_of_split(name, source, known) == settings_of_split(name, source, other)
                assert same == torch.equal(getattr(before, name), getattr(after, name)), (name, change)


def test_no_more_is_read_than_the_pool_or_the_splits_need(tmp_path: Path) -> None:
    source = str(numbered(tmp_path / "a.txt", 4 * 100))
    for pool_tokens, highest in [(1, 18), (4 * 50, 50)]:
        splits = make_splits(source, config(pool_tokens=pool_tokens), CharTokenizer(), seed=0)
        assert max(int(getattr(splits, name).max()) for name in SPLITS) < 0x1000 + 4 * highest


def test_a_held_out_source_is_read_from_its_beginning(tmp_path: Path) -> None:
    source, apart = numbered(tmp_path / "a.txt", 4 * 16), numbered(tmp_path / "b.txt", 100, first=0x3000)
    splits = make_splits(str(source), config(held_out_data=str(apart)), CharTokenizer(), seed=0)
    assert splits.held_out.flatten().tolist() == list(range(0x3000, 0x3008))
    assert sorted(torch.cat([splits.hessian, splits.train, splits.select]).flatten().tolist()) == list(
        range(0x1000, 0x1040)
    )


def test_too_little_text_says_how_much_is_there_and_needed(tmp_path: Path) -> None:
    few, some = numbered(tmp_path / "few.txt", 4 * 17 + 3), numbered(tmp_path / "some.txt", 4 * 18)
    with pytest.raises(
        RequestError, match=r"few\.txt.* 68 tokens .*blocks of 4.* 72 .*blocks\.hessian 8.*blocks\.held_out 2"
    ):
        make_splits(str(few), config(), CharTokenizer(), seed=0)
    with pytest.raises(RequestError, match=r"few\.txt.* 68 tokens .*blocks\.held_out = 20 needs 80"):
        make_splits(str(some), config(held_out=20, held_out_data=str(few)), CharTokenizer(), seed=0)


# The Python source on this machine


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A standard library of 2,000 files that each hold their own path, and some that do not count."""
    paths = [f"package{i % 20}/module{i}.py" for i in range(2000)]
    for path in [*paths, "test/a.py", "json/tests/a.py", "encodings/a.py", "site-packages/a.py", "a/__pycache__/a.py"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    monkeypatch.setattr(stdlib, "sysconfig", SimpleNamespace(get_paths=lambda: {"stdlib": str(tmp_path)}))
    return paths


def test_the_parts_of_stdlib_are_disjoint_and_one_of_16_is_held_out(library: list[str]) -> None:
    held_out, fitted = read("stdlib", held_out=True), read("stdlib")
    assert sorted(held_out + fitted) == sorted(library)
    assert abs(len(held_out) - 2000 / 16) < 4 * (2000 * 1 / 16 * 15 / 16) ** 0.5  # 4 sigma
    assert held_out == sorted(held_out) == [path for path in sorted(library) if is_held_out(path)]
    with_tests = [text for part in (True, False) for text in stdlib_documents(held_out=part, tests=True)]
    assert sorted(with_tests) == sorted([*library, "test/a.py", "json/tests/a.py"])


def test_stdlib_splits_hold_out_the_held_out_files(library: list[str]) -> None:
    splits = make_splits("stdlib", config(sequence_length=10, pool_tokens=10_000), CharTokenizer(), seed=0)
    text = "".join(map(chr, splits.held_out.flatten()))
    assert text == chr(END).join(sorted(filter(is_held_out, library)))[:20]


def test_this_machine_has_python_source() -> None:
    assert "import" in "".join(itertools.islice(stdlib_documents(held_out=True), 5))
