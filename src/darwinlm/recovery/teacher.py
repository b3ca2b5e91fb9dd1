"""The dense model as a teacher: its view of every batch, computed alongside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import TrainConfig
from darwinlm.losses import shortened
from darwinlm.models.head import head_of
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole
from darwinlm.recovery.objective import Known, layer_states


class LiveTeacher:
    """The dense model in memory.

    Args:
        source: its checkpoint.
        train: temperature, top_k and hidden_weight count.
        compared: layers whose hidden states are wanted where `hidden_weight` is not 0.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self, source: ModelSource, train: TrainConfig, compared: list[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.train, self.compared = train, compared if train.hidden_weight else []
        self.model: Any = load_whole(source, device, dtype).requires_grad_(False)

    @torch.no_grad()
    def known(self, tokens: Tensor, numbers: Sequence[int]) -> Known:
        """Its view of (B, T) token ids, the blocks of the stream with these numbers."""
        output = self.model.model(input_ids=tokens, use_cache=False, output_hidden_states=bool(self.compared))
        hidden, head = output.last_hidden_state.flatten(0, 1), head_of(self.model)
        k, temperature = self.train.top_k, self.train.temperature
        final = shortened(hidden, head, k, temperature) if k else (hidden, head)
        return Known(final, temperature, layer_states(output, self.compared))
