"""The language-model head: from final hidden states to logits.

Letters: H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from darwinlm.models.family import Family, known_families


@dataclass(frozen=True)
class Head:
    """A head with all that a family does behind its matrix."""

    weight: Tensor
    """(V, H)."""
    scale: float = 1.0
    """What its products are multiplied by."""
    cap: float | None = None
    """Logits go through cap * tanh(x / cap)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) in the dtype of the weight, or under autocast -> (..., V) in float32."""
        logits = (hidden @ self.weight.T).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.weight.device

    def to(self, *where: torch.device | torch.dtype) -> Head:
        """Elsewhere, or in another dtype."""
        weight = self.weight
        for one in where:
            weight = weight.to(one)
        return replace(self, weight=weight)

    def detached(self) -> Head:
        """In float32 and without a gradient."""
        return replace(self, weight=self.weight.detach().float())

    def rows(self, count: int | None) -> Head:
        """Of the first tokens alone."""
        return replace(self, weight=self.weight[:count])


def family_of_model(model: Any) -> Family:
    """The family of a model in memory."""
    return known_families()[model.config.model_type]


def head_of(model: Any) -> Head:
    """The head of a causal language model in memory."""
    return Head(model.get_output_embeddings().weight, *family_of_model(model).head(model.config))
