"""What an error in each column of each matrix costs: the mean square of what the column is fed (llama.cpp's `imatrix`).

Letters: S = sequences, T = tokens of each, C = columns of a matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from darwinlm.export.text import beginning
from darwinlm.models.blocks import BlockStream
from darwinlm.models.llama_cpp import fed_alike
from darwinlm.models.source import ModelSource
from darwinlm.runtime.progress import progress

_SEQUENCES = 8


def importance(source: ModelSource, tokens: Tensor, device: torch.device) -> dict[str, np.ndarray]:
    """Pass a text through a checkpoint, block by block in float32.

    Args:
        source: the checkpoint.
        tokens: (S, T) token ids, of which the first sequences are read.
        device: where blocks compute.

    Returns:
        {llama.cpp's tensor name: (C,) float32}, of the matrices of all layers, without those of absent modules.
    """
    stream, names, found = BlockStream(source, device, torch.float32), fed_alike(source), {}
    tokens = beginning(tokens, source)
    hidden = stream.embed(tokens)
    with progress("Importance of columns", len(stream)) as advance:
        for layer, block in enumerate(stream.blocks()):
            matrices = {n: m for n, m in block.layer.named_modules() if n in names and isinstance(m, nn.Linear)}
            sums = {
                name: torch.zeros(m.in_features, dtype=torch.float64, device=device) for name, m in matrices.items()
            }
            for name, matrix in matrices.items():
                matrix.register_forward_pre_hook(_adding(sums[name]))
            stream.forward(block, hidden, _SEQUENCES)
            for name, total in sums.items():
                mean = (total / tokens.numel()).float().cpu().numpy()
                found |= {f"blk.{layer}.{there}.weight": mean for there in names[name]}
            advance("")
    return found


def _adding(total: Tensor):
    def hook(matrix: nn.Module, arguments: tuple[Tensor]) -> None:
        total.add_(arguments[0].flatten(0, -2).square().sum(0, dtype=torch.float64))

    return hook
