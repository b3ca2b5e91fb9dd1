"""The packed stream against the plain way: tokenize all, join, cut, permute; and from every place on."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pico
from darwinlm.data.stream import PackedStream
from darwinlm.data.tokens import Ranges
from darwinlm.errors import RequestError
from darwinlm.runtime.seeds import torch_generator

LENGTH, WINDOW = 16, 5
TEXTS = ["alpha " * 7, "b", "", "a longer one, " * 20, "the end"] * 26


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> PackedStream:
    path = tmp_path_factory.mktemp("stream") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return PackedStream(str(path), "text", pico.tokenizer(), LENGTH, WINDOW, seed=3)


def plainly(stream: PackedStream, epochs: int = 1, held: range = range(0)) -> list[list[int]]:
    """All blocks, from all tokens in memory; `held` are tokens of the third document that has some."""
    tokenizer, found, rest, windows = pico.tokenizer(), [], [], itertools.count()
    for epoch in range(epochs):
        tokens = rest
        for number, text in enumerate(filter(None, TEXTS)):
            ids = tokenizer(text)["input_ids"]
            joint = [pico.BYTES] if number or epoch else []
            if number == 2 and held:
                before, after = ids[: held.start], ids[held.stop :]
                ids = before + ([pico.BYTES] if before and after else []) + after
                joint = joint if ids else []
            tokens = tokens + joint + ids
        count = len(tokens) // LENGTH
        blocks = [tokens[i * LENGTH : (i + 1) * LENGTH] for i in range(count)]
        rest = tokens[count * LENGTH :]
        for first in range(0, count, stream.window):
            rows = blocks[first : first + stream.window]
            order = torch.randperm(len(rows), generator=torch_generator(stream.seed, "stream", next(windows)))
            found += [rows[i] for i in order]
    return found


def holding(stream: PackedStream, held: range) -> PackedStream:
    text = [text for text in TEXTS if text][2]
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
    return replace(stream, without=Ranges(torch.tensor([[digest, 0, held.start, held.stop]])))


def streamed(stream: PackedStream, *place) -> list[list[int]]:
    return [tokens.tolist() for tokens, _ in stream.blocks(*place)]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("held", [range(0), range(100), range(50, 99), range(200, 280), range(280)])
def test_blocks_are_the_joined_documents_cut_and_shuffled_in_windows(stream, epochs, held):
    """Without what is held apart: of the document that is meant, not of those that equal it."""
    settings = replace(holding(stream, held), epochs=epochs)
    assert streamed(settings) == plainly(settings, epochs, held)


def test_a_block_does_not_depend_on_how_often_the_text_is_read(stream):
    once = streamed(stream)
    assert streamed(replace(stream, epochs=2))[: len(once)] == once


def test_a_window_of_one_keeps_the_order(stream):
    ordered = replace(stream, window=1)
    assert streamed(ordered) == plainly(ordered)
    assert streamed(ordered)[:WINDOW] != streamed(stream)[:WINDOW]


@pytest.mark.parametrize("epochs", [1, 3])
def test_it_goes_on_from_any_block_with_its_bookmark(stream, epochs):
    """Also where the bookmark is an older one, or none."""
    settings = replace(holding(stream, range(50, 99)), epochs=epochs)
    whole = list(settings.blocks())
    everything = [tokens.tolist() for tokens, _ in whole]
    for start in range(0, len(whole), 29):
        assert streamed(settings, start, whole[max(0, start - 1)][1]) == everything[start:]
    assert streamed(settings, 23) == everything[23:]


def test_documents_before_a_bookmark_are_not_tokenized_again(stream):
    class Counting:
        eos_token_id = pico.BYTES

        def __init__(self) -> None:
            self.inner, self.texts = pico.tokenizer(), 0

        def __call__(self, texts, **options):
            self.texts += len(texts)
            return self.inner(texts, **options)

    bookmark = list(stream.blocks())[-1][1]
    assert bookmark.document > 0
    counting = replace(stream, tokenizer=Counting())
    streamed(counting, bookmark.window * WINDOW, bookmark)
    assert counting.tokenizer.texts == len([text for text in TEXTS if text]) - bookmark.document


def test_too_little_text_is_found_before_anything_is_trained(stream):
    there = len(plainly(stream)) * LENGTH
    stream.require(there)
    with pytest.raises(
        RequestError, match=rf"has {there:,} tokens in whole blocks of 16 .* but {there + 16:,} are asked"
    ):
        stream.require(there + 16)
    twice = replace(holding(stream, range(40)), epochs=2)
    there = len(plainly(twice, 2, range(40))) * LENGTH
    twice.require(there)
    with pytest.raises(RequestError, match="in 2 passes"):
        twice.require(there + 5 * LENGTH)


def test_counting_ends_where_it_would_be_long(stream):
    stream.require(10**12, counted=300)


def test_folders_of_files_are_one_stream(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(name * 40)
    stream = PackedStream(str(tmp_path), "text", pico.tokenizer(), 9, 1, seed=0)
    tokens = [token for block in streamed(stream) for token in block]
    a, b = (pico.tokenizer()(letter)["input_ids"] for letter in "ab")
    assert tokens == [*a * 40, pico.BYTES, *b * 40]
