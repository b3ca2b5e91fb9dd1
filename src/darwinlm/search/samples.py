"""Which tokens a selection step trains and scores on: the same for all its candidates, others in every step."""

from __future__ import annotations

from torch import Tensor, randperm

from darwinlm.runtime.seeds import torch_generator


def draw(pool: Tensor, tokens: int, seed: int, purpose: str, generation: int, stage: int) -> list[tuple[int, int]]:
    """(block, tokens of it) pairs that hold `tokens` in all, blocks of `pool` (blocks, T) drawn without replacement.

    A single token left over is dropped: it has no next one. `config.faults` sees to it that the pool is large enough.
    """
    length = pool.shape[1]
    whole, rest = divmod(tokens, length)
    order = randperm(pool.shape[0], generator=torch_generator(seed, purpose, generation, stage)).tolist()
    drawn = [(block, length) for block in order[:whole]]
    if rest > 1 and whole < len(order):
        drawn.append((order[whole], rest))
    return drawn


def batches(drawn: list[tuple[int, int]], size: int) -> list[tuple[list[int], int]]:
    """Join blocks of equal length into batches of at most `size`: (blocks, tokens of each)."""
    joined: list[tuple[list[int], int]] = []
    for block, length in drawn:
        if joined and joined[-1][1] == length and len(joined[-1][0]) < size:
            joined[-1][0].append(block)
        else:
            joined.append(([block], length))
    return joined
