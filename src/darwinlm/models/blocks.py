"""A decoder run one block at a time: only the block at work is in memory.

Letters: S = sequences, T = tokens in a sequence, H = hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from darwinlm.models.source import ModelSource
from darwinlm.models.stock import Block
from darwinlm.runtime.placement import Placement
from darwinlm.runtime.progress import progress


class BlockStream:
    """The blocks of a checkpoint, each loaded when it is asked for and dropped when the next one is.

    Args:
        source: the checkpoint.
        device: where a block computes.
        dtype: what it computes in.
    """

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.shape = source.shape

    def __len__(self) -> int:
        return len(self.source.shape.layers)

    @torch.no_grad()
    def embed(self, tokens: Tensor, placement: Placement | None = None) -> Tensor:
        """(S, T) token ids -> (S, T, H) inputs of the first block, on the CPU or where `placement` says."""
        shape = (*tokens.shape, self.source.shape.hidden)
        hidden = placement.empty(shape, self.dtype) if placement else torch.empty(shape, dtype=self.dtype)
        decoder = self.source.shape.stock.decoder(torch.device("cpu"))
        decoder.embed_tokens = _with_weight(decoder.embed_tokens, self.source.embedding().to(self.dtype))
        decoder.norm = nn.Identity()
        for part, ids in zip(hidden.split(1), tokens.cpu().split(1)):
            part.copy_(decoder(input_ids=ids, use_cache=False).last_hidden_state)
        return hidden

    def blocks(self, count: int | None = None) -> Iterator[Block]:
        """The first `count` blocks, all by default.

        Call them through `forward`. The next one is read while the caller works on this one.
        """
        last = len(self) if count is None else count
        with ThreadPoolExecutor(max_workers=1) as reader:
            waiting = reader.submit(self.weights, 0)
            for index in range(last):
                tensors = waiting.result()
                if index + 1 < last:
                    waiting = reader.submit(self.weights, index + 1)
                yield self._built(index, tensors)

    def block(self, index: int) -> Block:
        """One block, to be run but not trained."""
        return self._built(index, self.weights(index))

    def weights(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block as they are stored, by their names within the layer."""
        return self.source.layer(index)

    def _built(self, index: int, weights: dict[str, Tensor]) -> Block:
        tensors = {name: tensor.to(self.device, self.dtype) for name, tensor in weights.items()}
        return self.shape.stock.block(index, self.shape.layers[index], tensors, self.device)

    @torch.no_grad()
    def forward(self, block: Block, hidden: Tensor, batch: int) -> None:
        """Replace `hidden` (S, T, H) by the block's outputs, `batch` sequences at a time."""
        freely = hidden.is_pinned()  # copies then run beside the host, in the order of the device's stream
        for part in hidden.split(batch) if len(hidden) else ():  # a rank may have no sequence
            part.copy_(block(part.to(self.device, non_blocking=freely)), non_blocking=freely)

    @torch.no_grad()
    def final_norm(self, hidden: Tensor) -> Tensor:
        """(S, T, H) outputs of the last block become inputs of the head, in place."""
        norm = self.norm().cpu()
        for sequence in hidden:
            sequence.copy_(norm(sequence))
        return hidden

    def norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        norm = self.source.shape.stock.decoder(self.device).norm
        return _with_weight(norm, self.source.final_norm().to(self.device, self.dtype))

    def final_hidden(self, tokens: Tensor, batch: int = 8, title: str = "Dense model") -> Tensor:
        """(S, T) token ids -> (S, T, H) inputs of the head: the model's whole forward but the logits; `title` of its progress."""
        hidden = self.embed(tokens)
        with progress(title, len(self)) as advance:
            for block in self.blocks():
                self.forward(block, hidden, batch)
                advance("")
        return self.final_norm(hidden)


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """A stock module that has one weight, with this one."""
    twin = copy.deepcopy(module)
    twin.load_state_dict({"weight": weight}, assign=True)
    return twin
