"""Held-out text in the course of a training: perplexity, and KL to the teacher, of the model as it is wrapped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darwinlm.losses import perplexity_of, token_kls, token_nlls
from darwinlm.models.blocks import BlockStream
from darwinlm.recovery.objective import Known
from darwinlm.runtime import ranks


class Watch:
    """Held-out blocks that all ranks score together.

    Args:
        tokens: (S, T) ids.
        teacher: the dense model, whose final hidden states on them are kept in host memory; None for perplexity alone.
        batch: sequences that a rank computes at a time.
    """

    def __init__(self, tokens: Tensor, teacher: BlockStream | None, batch: int) -> None:
        self.tokens, self.batch = tokens, batch
        self.hidden = teacher.final_hidden(tokens) if teacher else None
        self.head = teacher.source.head() if teacher else None

    @torch.no_grad()
    def quality(self, model: Any, device: torch.device) -> dict[str, float]:
        """{perplexity, kl} of an `Objective` as it is wrapped; kl only with a teacher.

        Every rank makes as many passes as the others, for their parameters may be shared out; rows beyond the last one
        count nothing.
        """
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        every, count = ranks.world_size() * self.batch, len(self.tokens)
        for first in range(ranks.rank() * self.batch, -(-count // every) * every, every):
            rows = [row for row in range(first, first + self.batch) if row < count]
            found = model(self.tokens[rows or [0]].to(device), self._known(rows or [0], device))
            parts = [found["cross_entropy"].item(), found["kl"].item() if "kl" in found else 0.0, 1.0]
            sums += len(rows) * torch.tensor(parts, dtype=torch.float64)
        model.train()
        entropy, kl, rows = ranks.all_reduce(sums).tolist()
        quality = {"perplexity": perplexity_of(entropy / rows)}
        return {**quality, "kl": kl / rows} if self.hidden is not None else quality

    def quality_of_checkpoint(self, stream: BlockStream) -> dict[str, float]:
        """{perplexity, kl} of a checkpoint, block by block, as `quality` gives them of a model in training."""
        hidden, head = stream.final_hidden(self.tokens), stream.source.head().to(stream.device, torch.float32)
        nlls = token_nlls(hidden[:, :-1].flatten(0, 1), head, self.tokens[:, 1:].flatten())
        quality = {"perplexity": perplexity_of(nlls.mean().item())}
        if self.hidden is None or self.head is None:
            return quality
        kls = token_kls(self.hidden.flatten(0, 1), hidden.flatten(0, 1), self.head.to(head.device, torch.float32), head)
        return {**quality, "kl": kls.mean().item()}

    def _known(self, rows: list[int], device: torch.device) -> Known | None:
        if self.hidden is None or self.head is None:
            return None
        self.head = self.head.to(device, torch.float32)
        return Known((self.hidden[rows].flatten(0, 1).to(device), self.head))
