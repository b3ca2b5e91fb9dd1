"""Packed whole numbers, as vLLM and transformers read them from compressed-tensors checkpoints (`pack-quantized`).

A block of a row is one bfloat16 scale and a whole number for each column, of 4 or 8 bits; what is read back is their product,
in bfloat16. The number of the largest magnitude is at the low end of the grid, so the scale may be negative; then rounding what
is read back once more gives the same numbers and scales.

Letters: R = rows, C = columns, s = columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darwinlm.formats.types import BLOCKS, PACKED


def whole_numbers(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(R, C) numbers, int32, and (R, C / s) scales, bfloat16, of a matrix whose rows split into the blocks of a format."""
    blocks = matrix.float().unflatten(-1, (-1, BLOCKS[name][0]))
    end = 2 ** (PACKED[name] - 1)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = (largest / -end).bfloat16()
    steps = scales.float().where(scales != 0, 1.0)
    return (blocks / steps).round().clamp(-end, end - 1).int().flatten(-2), scales.squeeze(-1)


def read_back(numbers: Tensor, scales: Tensor) -> Tensor:
    """(R, C) float32: what an engine computes with."""
    blocks = numbers.unflatten(-1, (scales.shape[-1], -1)) * scales.float().unsqueeze(-1)
    return blocks.bfloat16().float().flatten(-2)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """(R, C) int32 -> (R, C * bits / 32) int32: those of a word lie in it from its low bits on, each 2^(bits - 1) larger."""
    places = torch.arange(0, 32, bits, device=numbers.device)
    words = (numbers.long() + 2 ** (bits - 1)).unflatten(-1, (-1, len(places))) << places
    return words.sum(-1).to(torch.uint32).view(torch.int32)


def unpack(words: Tensor, bits: int) -> Tensor:
    """(R, W) int32 -> (R, W * 32 / bits) int32: undoes `pack`."""
    places = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    return (((words.unsqueeze(-1) >> places) & (2**bits - 1)) - 2 ** (bits - 1)).flatten(-2)
