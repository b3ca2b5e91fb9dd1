"""The run of consecutive layers whose input and output are nearest in angle leaves (arXiv 2403.17887).

Letters: L = layers, S = sequences, T = tokens in a sequence, H = hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from darwinlm.comparison.methods.layers import SEQUENCES, without_layers
from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome
from darwinlm.models.blocks import BlockStream


def sliding_cosine(task: Task) -> Genome:
    """Of the shortest runs that bring the parameters within the budget, drop the one of the least angle."""
    angles = angular_distances(task.stream, task.teacher.tokens)
    count = len(task.stream)
    for length in range(1, count + 1):
        runs = [range(first, first + length) for first in range(count - length + 1)]
        fitting = [run for run in runs if task.parameters(without_layers(task.space, run)) <= task.budget]
        if fitting:
            nearest = min(fitting, key=lambda run: angles[run.start][run.stop])
            return without_layers(task.space, nearest)
    raise ValueError("a budget that no model without layers can meet")


def angular_distances(stream: BlockStream, tokens: Tensor, batch: int = SEQUENCES) -> list[list[float]]:
    """(L + 1, L + 1): mean angle, in half turns, between the residual streams before layers i and j (eq. 7 there).

    As there, only the last token of every sequence counts: it has seen all others.

    Args:
        stream: the model.
        tokens: (S, T) ids.
        batch: sequences in a forward pass.
    """
    hidden = stream.embed(tokens)
    last = [hidden[:, -1].double()]  # each (S, H)
    for block in stream.blocks():
        stream.forward(block, hidden, batch)
        last.append(hidden[:, -1].double())
    directions = normalize(torch.stack(last), dim=-1)
    cosines = torch.einsum("ish,jsh->ijs", directions, directions).clamp(-1, 1)
    return (cosines.arccos() / math.pi).mean(-1).tolist()
