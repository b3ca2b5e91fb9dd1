"""First-order Taylor estimates: |weight x gradient of the loss|, added up over the rows and the columns of every matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from darwinlm.comparison.methods.task import Task
from darwinlm.cost import Work, activation_bytes, beside_dense
from darwinlm.losses import next_token_loss
from darwinlm.models.head import head_of
from darwinlm.models.sites import layer_of
from darwinlm.runtime.memory import Need
from darwinlm.search.fitness import SCORING_TOKENS


class Sums(NamedTuple):
    """Of one matrix (R, C)."""

    rows: Tensor
    """(R,)"""
    columns: Tensor
    """(C,)"""


def saliences(task: Task) -> dict[str, Sums]:
    """{name of a weight: its sums}, for all matrices of the layers, on `search.start_tokens` of the text; in float32.

    One backward pass serves every method and every share.
    """
    return task.once("Taylor", lambda: _saliences(task), any_share=True)


def _saliences(task: Task) -> dict[str, Sums]:
    device = task.teacher.head.device
    model = task.assembler.model(task.space.present, device, torch.float32)
    for tokens in task.targets().tokens():
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        loss = next_token_loss(hidden, head_of(model), tokens)
        (loss * (tokens.shape[1] - 1) * tokens.shape[0]).backward()  # by tokens, so that batches of any size add up
    found: dict[str, Sums] = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and weight.grad is not None and layer_of(name) is not None:
            products = (weight * weight.grad).detach().abs()
            found[name] = Sums(products.sum(1).cpu(), products.sum(0).cpu())
    return found


def taylor_need(work: Work) -> Need:
    """Memory of the backward pass: float32 weights and gradients, and the activations of a batch of whole blocks."""
    tokens = max(work.config.blocks.sequence_length, min(SCORING_TOKENS, work.config.search.start_tokens))
    peak = 8 * work.shape.parameters + activation_bytes(work.shape, tokens, 4, checkpointing=False)
    without = "leave shortened_llama_taylor and llm_pruner out of --methods"
    return beside_dense("The Taylor estimate", work, peak, "lower search.start_tokens", without)
