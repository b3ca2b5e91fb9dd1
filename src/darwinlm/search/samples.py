"""Which tokens candidates are trained and scored on: the same for all candidates of a selection step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from torch import Tensor, randperm

from darwinlm.runtime.seeds import torch_generator

Drawn = list[tuple[int, int]]
"""(block, tokens of it) pairs."""


def draw(
    pool: Tensor, tokens: int, seed: int, purpose: str, generation: int, stage: int, length: int | None = None
) -> Drawn:
    """(block, tokens of it) pairs that hold `tokens` in all, blocks of `pool` (blocks, T) drawn without replacement.

    A single token left over is dropped: it has no next one. `config.faults` sees to it that the pool is large enough.

    Args:
        pool: (blocks, T) token ids.
        tokens: in all.
        seed, purpose, generation, stage: of the order of the blocks.
        length: tokens from the beginning of every block, more where the pool has too few blocks; by default all.
    """
    order = randperm(pool.shape[0], generator=torch_generator(seed, purpose, generation, stage)).tolist()
    return _filled(iter(order), beginning(pool, tokens, length), tokens)


def beginning(pool: Tensor, tokens: int, length: int | None) -> int:
    """Tokens from the beginning of a block that `draw` takes; arguments as there."""
    return min(pool.shape[1], max(length, -(-tokens // pool.shape[0]))) if length else pool.shape[1]


def draw_parts(pool: Tensor, ends: Sequence[int], seed: int, purpose: str, generation: int) -> list[Drawn]:
    """One sequence of `ends[-1]` tokens, cut where it has `ends[0]`, `ends[1]`, ...: the blocks of every part.

    Who is trained on the first part, and later on the second, has been trained as one who gets both at once. Parts have
    different blocks as long as the pool has new ones.

    Args:
        pool: (blocks, T) token ids.
        ends: rising.
        seed, purpose, generation: of the order of the blocks.
    """
    order = cycle(randperm(pool.shape[0], generator=torch_generator(seed, purpose, generation)).tolist())
    return [_filled(order, pool.shape[1], end - begin) for begin, end in zip((0, *ends), ends)]


def _filled(order: Iterator[int], length: int, tokens: int) -> Drawn:
    whole, rest = divmod(tokens, length)
    drawn = [(next(order), length) for _ in range(whole)]
    return [*drawn, (next(order), rest)] if rest > 1 else drawn


def batches(drawn: Drawn, size: int) -> list[tuple[list[int], int]]:
    """Join blocks of equal length into batches of at most `size`: (blocks, tokens of each)."""
    joined: list[tuple[list[int], int]] = []
    for block, length in drawn:
        if joined and joined[-1][1] == length and len(joined[-1][0]) < size:
            joined[-1][0].append(block)
        else:
            joined.append(([block], length))
    return joined
