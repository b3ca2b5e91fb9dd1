"""The model in training together with its loss, as one module: what Trainer, FSDP and torch.compile wrap.

Letters: B = sequences, T = tokens in a sequence, H = hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from darwinlm.config import TrainConfig
from darwinlm.losses import Shortened, distillation_losses, next_token_loss
from darwinlm.models.head import Head, head_of


@dataclass(frozen=True)
class Known:
    """What a teacher knows of a batch; it passes through wrappers as it is, so nothing casts it."""

    final: tuple[Tensor, Head] | Shortened
    """Final hidden states (B * T, H) and head, or what was kept of the distributions."""
    temperature: float = 1.0
    """Of the KL to it."""
    layers: list[Tensor] = field(default_factory=list)
    """(B, T, H) hidden states after each layer that is compared; empty where none is."""


class Objective(nn.Module):
    """The student and its loss.

    Args:
        student: a causal language model.
        train: how the losses are weighed.
        compared: layers whose hidden states are compared with the teacher's.
    """

    def __init__(self, student: nn.Module, train: TrainConfig, compared: list[int]) -> None:
        super().__init__()
        self.student, self.train_config, self.compared = student, train, compared

    def forward(self, input_ids: Tensor, known: Known | None = None) -> dict[str, Tensor]:
        """The loss of a batch and its parts, each a mean over tokens.

        Args:
            input_ids: (B, T).
            known: the teacher's view of the same tokens; without it the loss is cross entropy.
        """
        student: Any = self.student
        wanted = known is not None and bool(known.layers)
        output = student.model(input_ids=input_ids, use_cache=False, output_hidden_states=wanted)
        hidden, head = output.last_hidden_state, head_of(student)
        if known is None:
            entropy = next_token_loss(hidden, head, input_ids)
            return {"loss": entropy, "cross_entropy": entropy.detach()}
        targets = torch.full_like(input_ids, -100)
        targets[:, :-1] = input_ids[:, 1:]
        entropy, kl = distillation_losses(hidden.flatten(0, 1), head, targets.flatten(), known.final, known.temperature)
        weight = self.train_config.distill_weight
        loss = weight * known.temperature**2 * kl + (1 - weight) * entropy  # the square: arXiv 1503.02531, section 2
        parts = {"cross_entropy": entropy.detach(), "kl": kl.detach()}
        if wanted:
            states = layer_states(output, self.compared)
            pairs = zip(states, known.layers, strict=True)
            apart = [1 - cosine_similarity(one.float(), other.float(), dim=-1).mean() for one, other in pairs]
            distance = torch.stack(apart).mean()
            loss = loss + self.train_config.hidden_weight * distance
            parts["hidden_distance"] = distance.detach()
        return {"loss": loss, **parts}


def layer_states(output: Any, layers: list[int]) -> list[Tensor]:
    """Hidden states after the layers that are named, of a decoder's output; the last layer's are normed."""
    return [output.hidden_states[layer + 1] for layer in layers]
