"""Documents as tokens, without those that are held apart, and blocks of them that know where they come from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darwinlm.data.sources import Rest

WHOLE_CHARACTERS = 1 << 26
"""A tokenizer that begins every text in a way of its own (a space in front, as with Llama 2) splits nowhere: up to this
size a document stays whole for it; beyond, one such beginning is accepted per run."""
_AROUND = 256
_BATCH_TEXTS, _BATCH_CHARACTERS = 64, 1 << 22
_Origin = tuple[int, int]
"""A document by its content: digest of its text, and how many equal ones came before it in the source."""


class Ranges:
    """Tokens of documents that are held apart, wherever their text turns up again.

    Args:
        rows: (n, 4) int64: digest, equal ones before it, first token, token after the last.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = torch.zeros(0, 4, dtype=torch.int64) if rows is None else rows
        self._cuts: dict[_Origin, list[tuple[int, int]]] = {}
        for digest, copy, first, last in sorted(self.rows.tolist()):
            self._cuts.setdefault((digest, copy), []).append((first, last))
        self._digests = {digest for digest, _ in self._cuts}

    def __add__(self, other: Ranges) -> Ranges:
        return Ranges(torch.cat([self.rows, other.rows]))

    def __contains__(self, digest: int) -> bool:
        return digest in self._digests

    def of(self, origin: _Origin) -> list[tuple[int, int]]:
        """[first, after the last) of a document's tokens, in order."""
        return self._cuts.get(origin, [])


@dataclass(frozen=True)
class Tokens:
    """A document's tokens; of one that comes in parts, a part's."""

    number: int
    """In the source."""
    origin: _Origin
    begins: bool
    """No part that goes on where the one before it stopped."""
    kept: list[tuple[int, np.ndarray]]
    """(tokens of it before these, these): what is not held apart."""

    def pieces(self, end: int | None, *, first: bool) -> Iterator[tuple[int | None, np.ndarray]]:
        """(place in the document, tokens); end tokens between texts that do not touch have no place.

        Args:
            end: the end token; None where there is none.
            first: nothing comes before this document.
        """
        for place, (start, tokens) in enumerate(self.kept):
            if end is not None and (place or (self.begins and not first)):
                yield None, np.array([end], dtype=np.int32)
            yield start, tokens


def tokenized(
    texts: Iterable[str], tokenizer: Any, without: Ranges | None = None, first: int = 0, *, numbered: bool = False
) -> Iterator[Tokens]:
    """Tokenize documents; no special tokens are added. Those in parts are tokenized as if they were whole.

    Args:
        texts: documents.
        tokenizer: of the model.
        without: what is left out.
        first: document to begin with; those before it are not tokenized.
        numbered: tell equal documents apart even where nothing is held apart.
    """
    without = without or Ranges()
    met: Counter[int] = Counter()

    def origin(text: str) -> _Origin:
        digest = _digest(text)
        if not numbered and digest not in without:
            return digest, 0
        met[digest] += 1
        return digest, met[digest] - 1

    read = runs(texts, tokenizer)
    for text in islice(read, first):
        origin(text)
    number = first
    for batch in batches(read):
        for text, ids in zip(batch, tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]):
            here = origin(text)
            kept = _kept(np.asarray(ids, dtype=np.int32), without.of(here))
            yield Tokens(number, here, not isinstance(text, Rest), kept)
            number += 1


def runs(texts: Iterable[str], tokenizer: Any) -> Iterator[str]:
    """Join parts until the next one begins where the tokenizer splits by itself.

    Args:
        texts: documents; a part that goes on is a `Rest`.
        tokenizer: tells by its own tokens of the text around a joint whether it splits there.

    Yields:
        Texts whose tokens, one after the other, are those of the whole; again, one that goes on is a `Rest`.
    """
    run: str | None = None
    for text in texts:
        if run is None:
            run = text
        elif isinstance(text, Rest) and len(run) < WHOLE_CHARACTERS and not _splits(run, text, tokenizer):
            joined = run + text
            run = Rest(joined) if isinstance(run, Rest) else joined
        else:
            yield run
            run = text
    if run is not None:
        yield run


def _splits(left: str, right: str, tokenizer: Any) -> bool:
    """Whether the tokens around a joint are the same whether the text comes in one or in two."""
    left, right = left[-_AROUND:], right[:_AROUND]
    both, first, second = tokenizer([left + right, left, right], add_special_tokens=False, verbose=False)["input_ids"]
    return both == first + second


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts to be tokenized at once: many short ones, few long ones."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_TEXTS or sum(map(len, batch)) >= _BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _kept(tokens: np.ndarray, cuts: list[tuple[int, int]]) -> list[tuple[int, np.ndarray]]:
    if not cuts:
        return [(0, tokens)]
    kept, start = [], 0
    for first, last in [*cuts, (len(tokens), len(tokens))]:
        if first > start:
            kept.append((start, tokens[start:first]))
        start = max(start, last)
    return kept


@dataclass(frozen=True)
class Pool:
    """Blocks cut from a source, in order."""

    blocks: Tensor
    """(blocks, length) int64."""
    origins: list[tuple[int, int, int, int, int]]
    """Of every piece of text: digest, equal ones before it, its place in the document, its place in the pool, tokens."""

    def ranges(self, chosen: Iterable[int]) -> Ranges:
        """Where the tokens of these blocks come from."""
        length, rows = self.blocks.shape[1], []
        places = np.array([origin[3] for origin in self.origins])
        for begin in (block * length for block in chosen):
            index = max(0, int(np.searchsorted(places, begin, side="right")) - 1)
            for digest, copy, start, place, count in self.origins[index:]:
                if place >= begin + length:
                    break
                first, last = max(begin, place) - place, min(begin + length, place + count) - place
                if last > first:
                    rows.append((digest, copy, start + first, start + last))
        return Ranges(torch.tensor(rows, dtype=torch.int64).reshape(-1, 4))


def read_pool(texts: Iterable[str], tokenizer: Any, length: int, at_most: int, without: Ranges | None = None) -> Pool:
    """Tokenize documents, put the end token between them, and cut the stream into blocks.

    A rest shorter than a block is left out. Reading stops at `at_most` tokens.

    Args:
        texts: documents.
        tokenizer: of the model.
        length: tokens in a block.
        at_most: tokens in all.
        without: what is left out.
    """
    return next(growing_pools(texts, tokenizer, length, at_most, without))


def growing_pools(
    texts: Iterable[str], tokenizer: Any, length: int, at_most: int, without: Ranges | None = None
) -> Iterator[Pool]:
    """`read_pool`, and then pools of four times as many tokens each, without reading anything twice; the last is all."""
    parts: list[np.ndarray] = []
    origins: list[tuple[int, int, int, int, int]] = []
    total = 0

    def pool() -> Pool:
        count = min(total, at_most) // length
        joined = np.concatenate(parts)[: count * length] if parts else np.zeros(0, dtype=np.int32)
        return Pool(torch.from_numpy(joined.astype(np.int64)).view(count, length), list(origins))

    for text in tokenized(texts, tokenizer, without, numbered=True) if at_most else ():
        for place, tokens in text.pieces(tokenizer.eos_token_id, first=not total):
            if place is not None:
                origins.append((*text.origin, place, total, len(tokens)))
            parts.append(tokens)
            total += len(tokens)
        while total >= at_most:
            yield pool()
            at_most *= 4
    yield pool()
