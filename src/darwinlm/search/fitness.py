"""How far a candidate is from the dense model: KL of next-token distributions, in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.losses import chunk_tokens, distributions, kl_of_tokens, token_nlls
from darwinlm.models.blocks import BlockStream
from darwinlm.models.head import Head, head_of
from darwinlm.search.samples import batches

SCORING_TOKENS = 2048
"""Tokens in one forward pass when candidates are scored."""
KEPT_BYTES = 1 << 30
"""Memory for the dense model's distributions on the tokens of a selection step; larger ones are made again each time."""


@dataclass(frozen=True)
class Teacher:
    """The dense model as its final hidden states on a pool of blocks; its head is applied in chunks."""

    tokens: Tensor
    """(blocks, T) ids, on the CPU."""
    hidden: Tensor
    """(blocks, T, H), on the CPU."""
    head: Head
    """In float32, on the device of the candidates."""


@dataclass(frozen=True)
class Pools:
    """What a search reads."""

    train: Tensor
    """(blocks, T) ids that candidates are trained on, and costs linearized on."""
    teacher: Teacher
    """The dense model on the blocks that candidates are scored on."""
    stream: BlockStream
    """The dense model, block by block."""


class Targets:
    """What candidates are compared with: the dense model's distributions on some blocks.

    Args:
        teacher: the dense model.
        drawn: (block, tokens of it) pairs.
    """

    def __init__(self, teacher: Teacher, drawn: list[tuple[int, int]]) -> None:
        self.teacher = teacher
        self.batches = batches(drawn, max(1, SCORING_TOKENS // max(length for _, length in drawn)))
        """(blocks, tokens of each): what one forward pass sees."""
        self.count = sum(length for _, length in drawn)
        self._keep = self.count * teacher.head.vocabulary * 4 <= KEPT_BYTES
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def tokens(self) -> Iterator[Tensor]:
        """(blocks, T) ids of each batch, on the device."""
        for blocks, length in self.batches:
            yield self.teacher.tokens[blocks, :length].to(self.teacher.head.device)

    def token_kls(self, hidden: Iterable[Tensor], head: Head) -> Tensor:
        """(tokens,) KL(dense || candidate) of each, in nats; float64, on the CPU.

        Args:
            hidden: the candidate's final hidden states (blocks, T, H'), for each batch.
            head: the candidate's.

        Raises:
            RequestError: it is not finite.
        """
        head = head.detached()
        step = chunk_tokens(head.vocabulary, head.device)
        parts = (part for batch in hidden for part in batch.detach().flatten(0, 1).split(step))
        found = [kl_of_tokens(*target, part, head).cpu() for target, part in zip(self._distributions(step), parts)]
        kls = torch.cat(found)
        if not math.isfinite(kl := kls.mean().item()):
            raise RequestError(f"The KL of a candidate is {kl}. Lower search.learning_rate, or use --dtype float32.")
        return kls

    def sequence_kls(self, hidden: Iterable[Tensor], head: Head) -> Tensor:
        """(sequences,) parts of the KL, in nats, whose mean is the KL per token; arguments as in `token_kls`."""
        lengths = [length for blocks, length in self.batches for _ in blocks]
        sums = torch.stack([part.sum() for part in self.token_kls(hidden, head).split(lengths)])
        return sums * (len(lengths) / self.count)

    def nll(self, hidden: Iterable[Tensor], head: Head) -> float:
        """Mean negative log-likelihood of the next tokens, in nats; arguments as in `token_kls`. The dense model plays no part."""
        pairs = ((batch[:, :-1], tokens[:, 1:]) for batch, tokens in zip(hidden, self.tokens()))
        return torch.cat([token_nlls(b.flatten(0, 1), head, t.flatten()) for b, t in pairs]).mean().item()

    def _distributions(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The dense model's, chunk by chunk of every batch; kept where there is room."""
        if self._kept is None and self._keep:
            self._kept = list(self._made(step))
        return iter(self._kept) if self._kept is not None else self._made(step)

    def _made(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        head = self.teacher.head
        for blocks, length in self.batches:
            for part in self.teacher.hidden[blocks, :length].flatten(0, 1).split(step):
                yield distributions(part.to(head.device), head)


@torch.no_grad()
def kls_to_teacher(model: Any, targets: Targets, dtype: torch.dtype) -> Tensor:
    """(sequences,) parts of the KL of a whole model, as `Targets.sequence_kls`.

    Raises:
        RequestError: it is not finite.
    """
    head = head_of(model)
    autocast = torch.autocast(head.device.type, dtype=dtype, enabled=dtype != head.weight.dtype)

    def hidden(tokens: Tensor) -> Tensor:
        with autocast:
            return model.model(input_ids=tokens, use_cache=False).last_hidden_state

    return targets.sequence_kls(map(hidden, targets.tokens()), head)
