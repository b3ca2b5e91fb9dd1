"""Long text files come in parts; their tokens are those of the whole text, whatever the tokenizer."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import pico
from darwinlm.data import files
from darwinlm.data import tokens as parts
from darwinlm.data.sources import Rest, documents
from darwinlm.data.stdlib import stdlib_documents
from darwinlm.data.stream import PackedStream
from darwinlm.data.tokens import batches, read_pool, runs
from darwinlm.errors import RequestError

LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _gpt2(fast: Tokenizer) -> None:
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _llama3(fast: Tokenizer) -> None:
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _llama2(fast: Tokenizer) -> None:
    """No words at all, and a space in front of every text."""
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])


@pytest.fixture(scope="module")
def text() -> str:
    """Python source: indented lines, empty lines, long ones."""
    return "".join(text for text, _ in zip(stdlib_documents(held_out=True), range(6)))[:60_000]


@pytest.fixture(scope="module", params=[_gpt2, _llama3, _llama2])
def tokenizer(request, text) -> Any:
    fast = Tokenizer(models.BPE())
    request.param(fast)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if request.param is not _llama2 else sorted({*text, "_"})
    fast.train_from_iterator(
        [text[:20_000]], trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    )
    fast.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=fast)
    made.add_special_tokens({"eos_token": pico.END})
    return made


@pytest.fixture
def small(monkeypatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(files, "PART_CHARACTERS", size)


@pytest.mark.parametrize("size", [50, 999, 20_000])
def test_tokens_are_those_of_the_whole(size, small, tokenizer, text, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    whole = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    small(size)
    read = list(documents(str(tmp_path), "text"))
    assert len(read) > 4
    assert "".join(read) == text + text
    assert sum(not isinstance(part, Rest) for part in read) == 2
    truth = [*whole, tokenizer.eos_token_id, *whole]
    assert read_pool(read, tokenizer, 1, 10**7).blocks.flatten().tolist() == truth
    trained = PackedStream(str(tmp_path), "text", tokenizer, 1, 1, seed=0)
    assert [int(tokens) for tokens, _ in trained.blocks()] == truth


def test_a_tokenizer_of_words_splits_often_and_another_never(small, tokenizer, text, tmp_path):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    small(500)
    found = list(runs(documents(str(tmp_path / "a.txt"), "text"), tokenizer))
    assert "".join(found) == text
    if tokenizer.backend_tokenizer.pre_tokenizer is None:
        assert len(found) == 1
    else:
        assert len(found) > 10
        assert all(isinstance(run, Rest) == (place > 0) for place, run in enumerate(found))


def test_a_document_that_never_splits_is_whole_up_to_a_size(monkeypatch):
    monkeypatch.setattr(parts, "WHOLE_CHARACTERS", 25)
    monkeypatch.setattr(parts, "_splits", lambda left, right, tokenizer: False)
    texts = ["0123456789", *[Rest("abcdefghij")] * 4, "other"]
    assert [len(run) for run in runs(texts, None)] == [30, 20, 5]


def test_small_files_are_one_document_as_before(tmp_path):
    for content in ("one line", "two\r\nlines\n\n", "ü" * 1000):
        (tmp_path / "a.txt").write_text(content, encoding="utf-8", newline="")
        assert list(documents(str(tmp_path / "a.txt"), "text")) == [content.replace("\r\n", "\n")]


def test_memory_does_not_grow_with_the_file(tmp_path):
    with (tmp_path / "a.txt").open("w") as file:
        for number in range(400_000):
            file.write(f"{number} lines that fill a file of a few dozen megabytes for this one test\n")
    assert (tmp_path / "a.txt").stat().st_size > 25e6
    tracemalloc.start()
    characters = sum(map(len, documents(str(tmp_path / "a.txt"), "text")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert characters == (tmp_path / "a.txt").stat().st_size
    assert peak < 12e6


def test_reading_stops_where_there_is_enough(small, tmp_path):
    """A fault behind what is needed is never met."""
    small(10_000)
    (tmp_path / "a.txt").write_bytes(b"enough words\n" * 3_000_000 + b"\xff")
    assert read_pool(documents(str(tmp_path / "a.txt"), "text"), pico.tokenizer(), 10, 1000).blocks.shape == (100, 10)
    with pytest.raises(RequestError, match="is not UTF-8"):
        list(documents(str(tmp_path / "a.txt"), "text"))


def test_batches_are_many_short_texts_or_few_long_ones():
    def endless() -> Iterator[str]:
        while True:
            yield "short"

    assert len(next(batches(endless()))) == 64
    assert [len(batch) for batch in batches(["x" * 3_000_000] * 5)] == [2, 2, 1]


def test_the_reference_text_is_one_part():
    """What published numbers were measured on was tokenized whole."""
    assert files.PART_CHARACTERS > 704_542


def test_path_of_a_file_in_parts_is_named(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff")
    with pytest.raises(RequestError, match=str(Path("bad.txt"))):
        list(documents(str(tmp_path / "bad.txt"), "text"))
