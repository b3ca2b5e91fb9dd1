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
            TextEnds: before the training.
        """
        rhythm, held = self.rhythm, list[Tensor]()
        block = self.step * rhythm.sequences
        for tokens, bookmark in self.stream.blocks(block, self.bookmark) if block < rhythm.blocks else ():
            held.append(tokens)
            if len(held) < rhythm.sequences:
                continue
            self.bookmark = bookmark
            yield from self._share(held, block)  # whole steps alone, so that all ranks end after the same one
            block, held = block + rhythm.sequences, []
            if block == rhythm.blocks:
                return
        if block < rhythm.blocks:
            length = self.stream.length
            raise self.stream.too_short((block + len(held)) * length, rhythm.blocks * length)

    def _share(self, blocks: list[Tensor], first: int) -> Iterator[dict[str, Any]]:
        """This rank's micro-batches of a step that begins with block `first`."""
        own = [i for i in range(len(blocks)) if self.rhythm.owner(first + i) == self.rank]
        for start in range(0, len(own), self.rhythm.micro):
            part = own[start : start + self.rhythm.micro]
            yield {"input_ids": torch.stack([blocks[i] for i in part]), "numbers": [first + i for i in part]}
