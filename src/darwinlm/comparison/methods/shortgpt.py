"""ShortGPT (arXiv 2403.03853): the layers that turn their inputs least leave.

Letters: S = sequences, T = tokens in a sequence, H = hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from darwinlm.comparison.methods.layers import SEQUENCES, drop_in_order
from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome
from darwinlm.models.blocks import BlockStream


def shortgpt(task: Task) -> Genome:
    """Drop layers of the least block influence."""
    influence = task.once("block influence", lambda: block_influences(task.stream, task.teacher.tokens), any_share=True)
    return drop_in_order(task, sorted(range(len(task.stream)), key=lambda layer: influence[layer]))


def block_influences(stream: BlockStream, tokens: Tensor, batch: int = SEQUENCES) -> list[float]:
    """1 - mean cosine over tokens of a layer's input and output (eq. 1 there), for every layer.

    Args:
        stream: the model.
        tokens: (S, T) ids.
        batch: sequences in a forward pass.
    """
    hidden, found = stream.embed(tokens), []  # (S, T, H)
    for block in stream.blocks():
        before = hidden.clone()
        stream.forward(block, hidden, batch)
        parts = zip(before.split(batch), hidden.split(batch))
        cosines = torch.cat([cosine_similarity(x.double(), y.double(), dim=-1) for x, y in parts])  # (S, T)
        found.append(1 - cosines.mean().item())
    return found
