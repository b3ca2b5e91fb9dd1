"""Which blocks share text with others: windows of tokens, compared by 64-bit hashes at every offset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

WINDOW = 64
"""Tokens in a row that are the same text; half a block where blocks are shorter than two of these."""


def shared(blocks: Tensor, others: Sequence[Tensor]) -> np.ndarray:
    """(blocks,) bool: whether a block has a window of tokens that some block of the others has, at any offset.

    Args:
        blocks: (blocks, T) ids.
        others: each (blocks, T'), T' may differ.
    """
    found = np.zeros(len(blocks), dtype=bool)
    for other in others:
        window = max(1, min(WINDOW, blocks.shape[1] // 2, other.shape[1] // 2))
        known = np.unique(_hashes(other, window))
        found |= np.isin(_hashes(blocks, window), known).any(axis=1)
    return found


def _hashes(blocks: Tensor, window: int) -> np.ndarray:
    """(blocks, T - window + 1) uint64: of every window, a polynomial of mixed tokens."""
    mixed = blocks.numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    places = blocks.shape[1] - window + 1
    hashes = np.zeros((len(blocks), places), dtype=np.uint64)
    for offset in range(window):
        hashes = hashes * np.uint64(0xD1342543DE82EF95) + mixed[:, offset : offset + places]
    return hashes
