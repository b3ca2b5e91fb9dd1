"""Which sequences each rank computes in which step: the same ones in all, however many ranks there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import TrainConfig
from darwinlm.data.stream import Bookmark, PackedStream
from darwinlm.errors import RequestError


@dataclass(frozen=True)
class Rhythm:
    """How the sequences of an optimizer step are shared out."""

    steps: int
    sequences: int
    """In a step."""
    micro: int
    """That a rank computes at a time."""
    ranks: int

    @classmethod
    def of(cls, train: TrainConfig, ranks: int) -> Rhythm:
        """The rhythm of a training.

        Raises:
            RequestError: a step cannot be shared out evenly.
        """
        at_once = train.micro_batch_sequences * ranks
        if train.batch_sequences % at_once:
            fits = -(-train.batch_sequences // at_once) * at_once * train.sequence_length
            raise RequestError(
                f"train.batch_tokens is {train.batch_tokens}, {train.batch_sequences} sequences, which {ranks} rank(s) with "
                f"{train.micro_batch_sequences} at a time cannot share out evenly. Set train.batch_tokens to {fits}, or "
                "change train.micro_batch_sequences."
            )
        return cls(train.steps, train.batch_sequences, train.micro_batch_sequences, ranks)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in a step."""
        return self.sequences // (self.micro * self.ranks)

    @property
    def blocks(self) -> int:
        """Sequences of the whole training."""
        return self.steps * self.sequences

    def owner(self, block: int) -> int:
        """The rank that computes a block of the stream."""
        return block // self.micro % self.ranks


class Batches:
    """The micro-batches of one rank, in order, from any step on.

    Args:
        stream: the text.
        rhythm: how it is shared out.
        rank: whose share.
    """

    def __init__(self, stream: PackedStream, rhythm: Rhythm, rank: int) -> None:
        self.stream, self.rhythm, self.rank = stream, rhythm, rank
        self.step = 0
        """The step that the next pass begins with."""
        self.bookmark = Bookmark()
        """Where the reading is."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield {input_ids: (micro, T), numbers: of these blocks in the stream}.

        Raises:
            RequestError: the text ends before the training.
        """
        held: list[Tensor] = []
        numbers: list[int] = []
        block = self.step * self.rhythm.sequences
        for tokens, bookmark in self.stream.blocks(block, self.bookmark):
            self.bookmark = bookmark
            if block == self.rhythm.blocks:
                return
            if self.rhythm.owner(block) == self.rank:
                held.append(tokens)
                numbers.append(block)
            if len(held) == self.rhythm.micro:
                yield {"input_ids": torch.stack(held), "numbers": numbers}
                held, numbers = [], []
            block += 1
        if block < self.rhythm.blocks:
            length = self.stream.length
            raise self.stream.too_short(block * length, self.rhythm.blocks * length)
