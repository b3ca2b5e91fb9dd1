"""Perplexity and KL to the dense model on held-out blocks; models are streamed, never whole in memory.

Letters: S = sequences, T = tokens in a sequence, H = hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.losses import token_kl, token_nll
from darwinlm.models.blocks import BlockStream
from darwinlm.models.head import Head, head_of
from darwinlm.runtime.progress import progress

_TITLE = "Held-out text"


@dataclass(frozen=True)
class Quality:
    """One model on held-out text."""

    parameters: int
    perplexity: float
    kl: float | None
    """Mean KL(dense || this) per token in nats; 0 for the dense model, None where it was not compared."""


class HeldOut:
    """Held-out blocks, with the dense model's final hidden states on them.

    Args:
        tokens: (S, T) ids.
        dense: the model to compare with; None where only perplexity is wanted.
        batch: sequences in a forward pass.
        rows: of the heads that are tokens, where models of the same tokens have padded them to different sizes; the
            others are left out of both distributions.
        head: in float32, the dense model's on its device, where somebody holds it already.
    """

    def __init__(
        self,
        tokens: Tensor,
        dense: BlockStream | None,
        batch: int = 8,
        *,
        rows: int | None = None,
        head: Head | None = None,
    ) -> None:
        self.tokens, self.dense, self.batch, self.rows = tokens, dense, batch, rows
        if dense is not None:
            self.hidden = dense.final_hidden(tokens, batch, f"{_TITLE}, dense model")
            self.head = dense.source.head().to(dense.device, torch.float32) if head is None else head

    def dense_quality(self) -> Quality:
        """The dense model itself."""
        if self.dense is None:
            raise ValueError("there is no dense model here")
        return Quality(self.dense.source.shape.parameters, self._perplexity(self.hidden, self.head), 0.0)

    def quality(self, stream: BlockStream) -> Quality:
        """A checkpoint, block by block.

        Raises:
            RequestError: it does not share the dense model's vocabulary.
        """
        shape = stream.source.shape
        if self.dense is not None and self.rows is None and shape.vocabulary != self.dense.source.shape.vocabulary:
            raise RequestError(
                f"'{stream.source.name}' has {shape.vocabulary:,} tokens and '{self.dense.source.name}' "
                f"{self.dense.source.shape.vocabulary:,}; their predictions cannot be compared. Give the model it was pruned from."
            )
        hidden = stream.final_hidden(self.tokens, self.batch, _TITLE)
        return self._of(shape.parameters, hidden, stream.source.head().to(stream.device, torch.float32))

    def _of(self, parameters: int, hidden: Tensor, head: Head) -> Quality:
        kl = None
        if self.dense is not None:
            kl = token_kl(
                self.hidden.flatten(0, 1), hidden.flatten(0, 1), self.head.rows(self.rows), head.rows(self.rows)
            )
        return Quality(parameters, self._perplexity(hidden, head), kl)

    @torch.no_grad()
    def quality_of_model(self, model) -> Quality:
        """A model in memory."""
        head = head_of(model)
        parts: list[Tensor] = []
        batches = self.tokens.split(self.batch)
        with progress(_TITLE, len(batches)) as advance:
            for part in batches:
                parts.append(model.model(input_ids=part.to(head.device), use_cache=False).last_hidden_state.cpu())
                advance("")
        return self._of(model.num_parameters(), torch.cat(parts), head)

    def _perplexity(self, hidden: Tensor, head: Head) -> float:
        return math.exp(token_nll(hidden[:, :-1].flatten(0, 1), head, self.tokens[:, 1:].flatten()))
