"""Perplexity and KL to the dense model on held-out blocks; models are streamed, never whole in memory.

Letters: S = sequences, T = tokens in a sequence, H = hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.losses import perplexity_of, token_kls, token_nlls
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
    perplexity_error: float | None = None
    """Standard error of the perplexity over blocks of the text; None for a single block."""
    kl_error: float | None = None
    """The same of the KL."""


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
        return self._of(self.dense.source.shape.parameters, self.hidden, self.head, is_dense=True)

    def quality(self, stream: BlockStream) -> Quality:
        """A checkpoint or a genome's model, block by block.

        Raises:
            RequestError: it does not share the dense model's vocabulary.
        """
        shape = stream.shape
        if self.dense is not None and self.rows is None and shape.vocabulary != self.dense.source.shape.vocabulary:
            raise RequestError(
                f"'{stream.source.name}' has {shape.vocabulary:,} tokens and '{self.dense.source.name}' "
                f"{self.dense.source.shape.vocabulary:,}; their predictions cannot be compared. Give the model it was pruned from."
            )
        hidden = stream.final_hidden(self.tokens, self.batch, _TITLE)
        return self._of(shape.parameters, hidden, stream.source.head().to(stream.device, torch.float32))

    def _of(self, parameters: int, hidden: Tensor, head: Head, *, is_dense: bool = False) -> Quality:
        nlls = token_nlls(hidden[:, :-1].flatten(0, 1), head, self.tokens[:, 1:].flatten())
        nll, error = _mean_and_error(nlls.view(len(hidden), -1))
        if not math.isfinite(nll):
            raise RequestError(
                "A model's predictions on the held-out text are no numbers: its weights hold NaN or Inf, or the arithmetic "
                "overflows. Run with --dtype float32; if that does not help, its weights are damaged."
            )
        perplexity = perplexity_of(nll)
        kl, kl_error = (0.0, 0.0) if is_dense else (None, None)
        if self.dense is not None and not is_dense:
            kl, kl_error = _mean_and_error(self._kls(hidden, head))
        return Quality(parameters, perplexity, kl, None if error is None else perplexity * error, kl_error)

    def _kls(self, hidden: Tensor, head: Head) -> Tensor:
        heads = self.head.rows(self.rows), head.rows(self.rows)
        return token_kls(self.hidden.flatten(0, 1), hidden.flatten(0, 1), *heads).view(len(hidden), -1)

    def quality_of_model(self, model) -> Quality:
        """A model in memory."""
        head = head_of(model)
        return self._of(model.num_parameters(), self._hidden(model, head), head)

    @torch.no_grad()
    def _hidden(self, model, head: Head) -> Tensor:
        parts: list[Tensor] = []
        batches = self.tokens.split(self.batch)
        with progress(_TITLE, len(batches)) as advance:
            for part in batches:
                parts.append(model.model(input_ids=part.to(head.device), use_cache=False).last_hidden_state.cpu())
                advance("")
        return torch.cat(parts)


def _mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """The mean of (S, tokens), and its standard error as S independent blocks have it."""
    blocks = values.mean(1)
    return values.mean().item(), (blocks.std() / math.sqrt(len(blocks))).item() if len(blocks) > 1 else None
