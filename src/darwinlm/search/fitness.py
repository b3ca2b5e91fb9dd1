"""How far a candidate is from the dense model: KL of next-token distributions, in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.losses import token_kl
from darwinlm.search.samples import batches

SCORING_TOKENS = 2048
"""Tokens in one forward pass when candidates are scored."""


@dataclass(frozen=True)
class Teacher:
    """The dense model as its final hidden states on a pool of blocks; its head is applied in chunks."""

    tokens: Tensor
    """(blocks, T) ids, on the CPU."""
    hidden: Tensor
    """(blocks, T, H), on the CPU."""
    head: Tensor
    """(V, H) float32, on the device of the candidates."""


@torch.no_grad()
def kl_to_teacher(model: Any, teacher: Teacher, drawn: list[tuple[int, int]], dtype: torch.dtype) -> float:
    """Mean KL(dense || candidate) per token over the drawn blocks, in nats.

    Raises:
        RequestError: it is not finite.
    """
    device = teacher.head.device
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    total, count = 0.0, 0
    batch = max(1, SCORING_TOKENS // teacher.tokens.shape[1])
    for blocks, length in batches(drawn, batch):
        tokens = teacher.tokens[blocks, :length].to(device)
        with autocast:
            student = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        ours = teacher.hidden[blocks, :length].flatten(0, 1).to(device)
        total += tokens.numel() * token_kl(ours, student.flatten(0, 1), teacher.head, model.lm_head.weight)
        count += tokens.numel()
    kl = total / count
    if not math.isfinite(kl):
        raise RequestError(f"The KL of a candidate is {kl}. Lower search.learning_rate, or use --dtype float32.")
    return kl
