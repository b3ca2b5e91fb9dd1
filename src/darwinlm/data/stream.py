"""An endless text as a stream of packed token blocks that never sits in memory, and that goes on from any place.

Documents are joined by the end token and cut into blocks. Blocks are shuffled within windows, which are small beside the
stream and large beside a batch. The order depends on the settings alone, so a place is a number of blocks; a bookmark
saves reading all that lies before it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darwinlm.data.sources import documents, known_tokens
from darwinlm.data.tokens import Ranges, tokenized
from darwinlm.errors import RequestError
from darwinlm.runtime.seeds import torch_generator


class TextEnds(RequestError):
    """There is less text than tokens are asked for."""


@dataclass(frozen=True)
class Bookmark:
    """Where a window begins in the text."""

    block: int = 0
    """Its first block's number."""
    window: int = 0
    """Its own number."""
    epoch: int = 0
    """How often the text was read to its end before."""
    document: int = 0
    """The document, or part of one, in which it begins."""
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
        epochs: times that the text is read. A block does not depend on it: windows end where the text does.
        without: text that is left out, since it is scored.
        begin: token that takes the place of the first one of every block; None leaves it.
    """

    source: str
    text_field: str
    tokenizer: Any
    length: int
    window: int
    seed: int
    epochs: int = 1
    without: Ranges = field(default_factory=Ranges)
    begin: int | None = None

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
                first = max(0, start - place.block)
                if self.begin is not None:
                    rows = torch.cat([torch.full_like(rows[:, :1], self.begin), rows[:, 1:]], dim=1)
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
        known = known_tokens(self.source)
        if known is not None and known * self.epochs < needed:
            raise self.too_short(known * self.epochs // self.length * self.length, needed)
        total, enough = 0, min(-(-needed // self.epochs), counted)
        for _, tokens in self._tokenized(0, 0, strict=True):
            total += len(tokens)
            if total >= enough:
                return
        there = (max(0, total + 1) * self.epochs - 1) // self.length * self.length
        if there < needed:
            raise self.too_short(there, needed)

    def too_short(self, there: int, needed: int) -> TextEnds:
        """The fault of a text that ends too early."""
        times = f" in {self.epochs} passes" if self.epochs > 1 else ""
        return TextEnds(
            f"'{self.source}' has {there:,} tokens in whole blocks of {self.length} to train on{times}, but {needed:,} are "
            "asked. Give more text, ask for fewer --tokens, or raise train.epochs."
        )

    def _windows(self, place: Bookmark) -> Iterator[tuple[Bookmark, Tensor]]:
        """(where it begins, (blocks, length) int32): full windows, and a smaller last one."""
        wanted, held, parts = self.window * self.length, 0, []
        for epoch, document, offset, tokens in self._texts(place):
            if parts and epoch != parts[-1][0] and (count := held // self.length):  # the text has ended
                rows, parts = _taken(parts, count * self.length)
                yield place, rows.view(count, self.length)
                held -= count * self.length
                place = Bookmark(place.block + count, place.window + 1, *parts[0][:3])
            parts.append((epoch, document, offset, tokens))
            held += len(tokens)
            while held >= wanted:
                rows, parts = _taken(parts, wanted)
                yield place, rows.view(self.window, self.length)
                held -= wanted
                place = Bookmark(place.block + self.window, place.window + 1, *parts[0][:3])
        if count := held // self.length:
            yield place, _taken(parts, count * self.length)[0].view(count, self.length)

    def _texts(self, place: Bookmark) -> Iterator[_Part]:
        """(epoch, document, tokens of it before these, these) from a place on."""
        for epoch in range(place.epoch, self.epochs):
            here = epoch == place.epoch and place.offset is not None
            drop = place.offset or 0 if here else 0
            for document, tokens in self._tokenized(epoch, place.document if here else 0):
                yield epoch, document, drop, tokens[drop:]
                drop = 0

    def _tokenized(self, epoch: int, first: int, *, strict: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """(document, its tokens with the end token before them) from a document on."""
        end = self.tokenizer.eos_token_id
        texts = documents(self.source, self.text_field, strict=strict)
        for text in tokenized(texts, self.tokenizer, self.without, first):
            pieces = [tokens for _, tokens in text.pieces(end, first=not (text.number or epoch))]
            yield text.number, np.concatenate(pieces) if pieces else _NOTHING


_NOTHING = np.zeros(0, dtype=np.int32)
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
