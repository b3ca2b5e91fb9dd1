"""The short training that a candidate gets before it is scored."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.losses import distillation_losses, next_token_loss
from darwinlm.models.head import Head, head_of
from darwinlm.runtime.placement import host_tensor
from darwinlm.search.fitness import Teacher
from darwinlm.search.optimizer import CompensatedAdamW
from darwinlm.search.samples import batches

ALIGNMENT = 64
"""Bytes between which tensors begin in the host memory of a trial that waits."""


def checkpoint_activations(model: Any) -> None:
    """Make activations again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the second name is that of transformers before 5.20


class Trial:
    """A candidate in its trial training: AdamW on cross entropy or on the KL to the dense model, without weight decay.

    Its weights are float32, or bfloat16 with compensated sums: rounded alone, they would lose most updates at these
    learning rates.

    Args:
        model: the candidate, at its own size; trained in place.
        learning_rate: of AdamW; 0 trains nothing.
        batch: blocks in one optimizer step.
        dtype: arithmetic of the forward pass.
    """

    def __init__(self, model: Any, learning_rate: float, batch: int, dtype: torch.dtype) -> None:
        self.model, self.learning_rate, self.batch = model, learning_rate, batch
        weight = head_of(model).weight
        self.device = weight.device
        self.autocast = torch.autocast(
            self.device.type, dtype=dtype, enabled=dtype not in (weight.dtype, torch.float32)
        )
        self._away: Tensor | None = None
        self._steps = 0
        self.optimizer: torch.optim.Optimizer | CompensatedAdamW
        if weight.dtype == torch.bfloat16:
            self.optimizer = CompensatedAdamW(model.parameters(), learning_rate)
        else:
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)

    def train(self, pool: Tensor, drawn: list[tuple[int, int]], teacher: Teacher | None = None) -> None:
        """Train on the drawn blocks, once each; goes on from where an earlier call stopped.

        Args:
            pool: (blocks, T) token ids.
            drawn: (block, tokens of it) pairs.
            teacher: the dense model on the pool, to be distilled from; None for cross entropy.

        Raises:
            RequestError: the loss is no longer finite.
        """
        if self.learning_rate == 0:
            return
        self.model.train()
        for blocks, length in batches(drawn, self.batch):
            hidden = teacher and (teacher.hidden[blocks, :length].to(self.device), teacher.head)
            self._step(pool[blocks, :length].to(self.device), hidden)
        self.model.eval()

    @property
    def bytes(self) -> int:
        """Memory of weights and what the optimizer keeps."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that the training goes on from: weights, and what the optimizer keeps from step to step."""
        if isinstance(self.optimizer, CompensatedAdamW):
            return [*self.model.parameters(), *self.optimizer.tensors()]
        kept = (tensor for state in self.optimizer.state.values() for tensor in state.values())
        return [*self.model.parameters(), *kept]

    @property
    def waits(self) -> bool:
        """Whether it lies in host memory, and must come back before it goes on."""
        return self._away is not None

    def wait(self) -> None:
        """Move to host memory, which leaves the device to others."""
        if self._away is not None:
            return
        tensors = self.tensors()
        starts = [0, *accumulate(-tensor.nbytes % ALIGNMENT + tensor.nbytes for tensor in tensors)]
        self._away = host_tensor((starts[-1],), torch.uint8, pinned=self.device.type == "cuda")
        for tensor, start in zip(tensors, starts):
            place = self._away[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            tensor.data = place.copy_(tensor.data)

    def come_back(self) -> None:
        """Move to the device again, to the bit."""
        if self._away is not None:
            for tensor in self.tensors():
                tensor.data = tensor.data.to(self.device, copy=True)
            self._away = None

    def _step(self, tokens: Tensor, teacher: tuple[Tensor, Head] | None) -> None:
        torch.manual_seed(self._steps)  # dropout, where a model has it: the same for all, and after a pause
        self._steps += 1
        with self.autocast:
            hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state
            if teacher is None:
                loss = next_token_loss(hidden, head_of(self.model), tokens)
            else:
                dense = (teacher[0].flatten(0, 1), teacher[1])
                loss = distillation_losses(hidden.flatten(0, 1), head_of(self.model), tokens.flatten(), dense)[1]
        if not torch.isfinite(loss):
            raise RequestError(
                f"The loss of a candidate became {loss.item()} in its trial training. Lower search.learning_rate "
                f"(now {self.learning_rate:g}) or use --dtype float32."
            )
        loss.backward()
        if isinstance(self.optimizer, torch.optim.Optimizer):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
