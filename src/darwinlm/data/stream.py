"""An endless text as a stream of packed token blocks that never sits in memory, and that goes on from any place.

Documents are joined by the end token and cut into blocks. Blocks are shuffled within windows, which are small beside the
stream and large beside a batch. The order depends on the settings alone, so a place is a number of blocks; a bookmark
saves reading all that lies before it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darwinlm.data.sources import documents
from darwinlm.errors import RequestError
from darwinlm.runtime.seeds import torch_generator

_DOCUMENTS = 64
"""Documents that are tokenized at a time."""


@dataclass(frozen=True)
class Bookmark:
    """Where a window begins in the text."""

    window: int = 0
    """Its number."""
    epoch: int = 0
    """How often the text was read to its end before."""
    document: int = 0
    """The document in which it begins."""
    offset: int | None = None
    """Tokens of that document before it; None at the beginning of the text."""


@dataclass(frozen=True)
class PackedStream:
    """A text as blocks of one length.

    Args:
        source: see `RunConfig.data`.
        text_field: field that holds the text in structured files.
        tokenizer: of the model.
        length: tokens in a block.
        window: blocks that are shuffled together.
        seed: of the shuffling.
        epochs: times that the text is read.
        skip: tokens at its beginning that are left out, each time.
    """

    source: str
    text_field: str
    tokenizer: Any
    length: int
    window: int
    seed: int
    epochs: int = 1
    skip: int = 0

    def blocks(self, start: int = 0, bookmark: Bookmark | None = None) -> Iterator[tuple[Tensor, Bookmark]]:
        """Yield block `start` and all after it, (length,) int64, each with the bookmark of its window.

        Args:
            start: number of the first block.
            bookmark: of the window that holds it or of an earlier one.

        Raises:
            RequestError: the source cannot be read.
        """
        with ThreadPoolExecutor(max_workers=1) as reader:  # the next window is tokenized while this one is trained on
            windows = self._windows(bookmark or Bookmark())
            waiting = reader.submit(next, windows, None)
            while (found := waiting.result()) is not None:
                waiting = reader.submit(next, windows, None)
                place, rows = found
                order = torch.randperm(len(rows), generator=torch_generator(self.seed, "stream", place.window))
                first = max(0, start - place.window * self.window)
                for row in order[first:].tolist():
                    yield rows[row].long(), place

    def require(self, needed: int, counted: int = 20_000_000) -> None:
        """Check that there are so many tokens in whole blocks, before any long work.

        Args:
            needed: tokens, a multiple of `length`.
            counted: tokens after which counting ends; whether a larger text suffices is then seen on the way.

        Raises:
            RequestError: there are fewer; says how many.
        """
        total, enough = -self.skip, min(-(-needed // self.epochs), counted)
        for _, tokens in self._tokenized(0, 0):
            total += len(tokens)
            if total >= enough:
                return
        there = (max(0, total + 1) * self.epochs - 1) // self.length * self.length
        if there < needed:
            raise self.too_short(there, needed)

    def too_short(self, there: int, needed: int) -> RequestError:
        """The fault of a text that ends too early."""
        times = f" in {self.epochs} passes" if self.epochs > 1 else ""
        return RequestError(
            f"'{self.source}' has {there:,} tokens in whole blocks of {self.length} to train on{times}, but {needed:,} are "
            "asked. Give more text, ask for fewer --tokens, or raise train.epochs."
        )

    def _windows(self, place: Bookmark) -> Iterator[tuple[Bookmark, Tensor]]:
        """(where it begins, (blocks, length) int32): full windows, and a smaller last one."""
        wanted, held, parts = self.window * self.length, 0, []
        for epoch, document, offset, tokens in self._texts(place):
            parts.append((epoch, document, offset, tokens))
            held += len(tokens)
            while held >= wanted:
                rows, parts = _taken(parts, wanted)
                yield place, rows.view(self.window, self.length)
                held -= wanted
                epoch, document, offset, _ = parts[0]
                place = Bookmark(place.window + 1, epoch, document, offset)
        if count := held // self.length:
            yield place, _taken(parts, count * self.length)[0].view(count, self.length)

    def _texts(self, place: Bookmark) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """(epoch, document, tokens of it before these, these) from a place on."""
        for epoch in range(place.epoch, self.epochs):
            here = epoch == place.epoch and place.offset is not None
            drop = place.offset or 0 if here else self.skip
            for document, tokens in self._tokenized(epoch, place.document if here else 0):
                left = min(drop, len(tokens))
                drop -= left
                yield epoch, document, left, tokens[left:]

    def _tokenized(self, epoch: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """(document, its tokens with the end token before them) from a document on."""
        end = self.tokenizer.eos_token_id
        waiting = islice(documents(self.source, self.text_field), first, None)
        number = first
        while batch := list(islice(waiting, _DOCUMENTS)):
            for ids in self.tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                joint = [end] if end is not None and (number or epoch) else []
                yield number, np.asarray(joint + ids, dtype=np.int32)
                number += 1


_Part = tuple[int, int, int, np.ndarray]


def _taken(parts: list[_Part], wanted: int) -> tuple[Tensor, list[_Part]]:
    """The first `wanted` tokens, and what is left: never nothing, so that its beginning is a place."""
    taken: list[np.ndarray] = []
    for number, (epoch, document, offset, tokens) in enumerate(parts):
        taken.append(tokens[:wanted])
        if len(tokens) >= wanted:
            rest = (epoch, document, offset + wanted, tokens[wanted:])
            return torch.from_numpy(np.concatenate(taken)), [rest, *parts[number + 1 :]]
        wanted -= len(tokens)
    raise RuntimeError("there are fewer tokens than were counted")
