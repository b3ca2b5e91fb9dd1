"""Token blocks of one length in four disjoint splits, so that nothing is scored on what it was fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import BlocksConfig
from darwinlm.data.parts import batches, runs
from darwinlm.data.sources import Rest, documents
from darwinlm.errors import RequestError
from darwinlm.runtime.seeds import torch_generator

SPLITS = ("hessian", "train", "select", "held_out")


@dataclass(frozen=True)
class Splits:
    """Disjoint token blocks, each (blocks, sequence_length) int64."""

    hessian: Tensor
    train: Tensor
    select: Tensor
    held_out: Tensor


def make_splits(source: str, config: BlocksConfig, tokenizer: Any, seed: int) -> Splits:
    """Read, tokenize and cut a source, and draw the splits from it at random without replacement.

    The held-out split comes from `config.held_out_data` where that is given, from the held-out files of `stdlib`, and
    else from the same pool; in the first two cases from the beginning, in order.

    Raises:
        RequestError: the source cannot be read or has too few tokens; says how many are there and needed.
    """
    length = config.sequence_length
    apart = held_out_apart(source, config)
    drawn = [name for name in SPLITS if not (name == "held_out" and apart)]
    needed = sum(getattr(config, name) for name in drawn)
    pool_tokens = max(config.pool_tokens, needed * length)
    pool = cut(documents(source, config.text_field), tokenizer, length, pool_tokens)
    if len(pool) < needed:
        counts = ", ".join(f"blocks.{name} {getattr(config, name)}" for name in drawn)
        raise RequestError(
            f"'{source}' has {len(pool) * length:,} tokens in whole blocks of {length}, but the splits need {needed * length:,} "
            f"({counts}). Give more text, or lower these numbers or blocks.sequence_length."
        )
    counts = {name: getattr(config, name) for name in drawn}
    parts = {name: pool[which] for name, which in drawn_in_turn(counts, config.pool_tokens // length, len(pool), seed)}
    if apart:
        parts["held_out"] = from_the_beginning(apart, config, tokenizer)
    return Splits(**parts)


def drawn_in_turn(counts: Mapping[str, int], pool: int, there: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Which blocks each split gets, at random without replacement: no split depends on those that are drawn after it.

    Args:
        counts: blocks of each split, in the order of drawing.
        pool: blocks that all are drawn from; beyond them reach only splits that need it.
        there: blocks that there are.
        seed: of the run.
    """
    free, needed = torch.ones(there, dtype=torch.bool), 0
    for name, count in counts.items():
        needed += count
        left = free[: max(pool, needed)].nonzero().flatten()
        chosen = left[torch.randperm(len(left), generator=torch_generator(seed, f"splits {name}"))[:count]]
        free[chosen] = False
        yield name, chosen


def settings_of_split(name: str, source: str, config: BlocksConfig) -> dict[str, Any]:
    """The settings that a split depends on, by their full names: its own, and those of the splits drawn before it."""
    if name == "held_out" and held_out_apart(source, config):
        names = ("sequence_length", "held_out", "held_out_data", "text_field")
    else:
        names = ("sequence_length", "text_field", "pool_tokens", *SPLITS[: SPLITS.index(name) + 1])
    return {f"blocks.{each}": getattr(config, each) for each in names}


def held_out_apart(source: str, config: BlocksConfig) -> str | None:
    """A source of held-out text beside the one that is fitted to; None where they come from the same."""
    return config.held_out_data or ("stdlib" if source == "stdlib" else None)


def from_the_beginning(source: str, config: BlocksConfig, tokenizer: Any) -> Tensor:
    """The first `config.held_out` blocks of a source, (blocks, sequence_length), in order.

    Raises:
        RequestError: the source cannot be read or has too few tokens.
    """
    length, needed = config.sequence_length, config.held_out
    blocks = cut(documents(source, config.text_field, held_out=True), tokenizer, length, needed * length)
    if len(blocks) < needed:
        raise RequestError(
            f"The held-out text '{source}' has {len(blocks) * length:,} tokens in whole blocks of {length}, but "
            f"blocks.held_out = {needed} needs {needed * length:,}. Give more text or lower blocks.held_out."
        )
    return blocks[:needed]


def cut(texts: Iterable[str], tokenizer: Any, length: int, at_most: int) -> Tensor:
    """Tokenize documents, put the end token between them, and cut the stream into (blocks, length).

    No other special tokens are added; a rest shorter than a block is left out. Reading stops at `at_most` tokens.
    Documents in parts are tokenized as if they were whole (`data.parts`).
    """
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for batch in batches(runs(texts, tokenizer)):
        for run, ids in zip(batch, tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]):
            if stream and end is not None and not isinstance(run, Rest):
                stream.append(end)
            stream += ids
        if len(stream) >= at_most:
            break
    count = min(len(stream), at_most) // length
    return torch.tensor(stream[: count * length], dtype=torch.int64).view(count, length)
