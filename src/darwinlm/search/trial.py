"""The short training that a candidate gets before it is scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.losses import next_token_loss
from darwinlm.search.samples import batches


def train_briefly(
    model: Any, pool: Tensor, drawn: list[tuple[int, int]], learning_rate: float, batch: int, dtype: torch.dtype
) -> None:
    """Train a candidate in place on the drawn blocks, once each, by AdamW on cross entropy.

    The weights are float32 whatever the arithmetic: at these learning rates a bfloat16 weight would lose most updates.

    Args:
        model: the candidate, at its own size, with float32 weights.
        pool: (blocks, T) token ids.
        drawn: (block, tokens of it) pairs.
        learning_rate: of AdamW, without weight decay.
        batch: blocks in one optimizer step.
        dtype: arithmetic of the forward pass.

    Raises:
        RequestError: the loss is no longer finite.
    """
    if not drawn or learning_rate == 0:
        return
    device = model.lm_head.weight.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    model.train()
    for blocks, length in batches(drawn, batch):
        tokens = pool[blocks, :length].to(device)
        with autocast:
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
            loss = next_token_loss(hidden, model.lm_head.weight, tokens)
        if not torch.isfinite(loss):
            raise RequestError(
                f"The loss of a candidate became {loss.item()} in its trial training. Lower search.learning_rate "
                f"(now {learning_rate:g}) or use --dtype float32."
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
