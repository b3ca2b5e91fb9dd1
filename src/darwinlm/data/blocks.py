"""Token blocks of one length in four disjoint splits, so that nothing is scored on what it was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import BlocksConfig
from darwinlm.data.lineage import RANGES, Lineage, Scored
from darwinlm.data.sources import documents
from darwinlm.data.tokens import Ranges, growing_pools, read_pool
from darwinlm.data.windows import shared
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
    ranges: Ranges = field(default_factory=Ranges)
    """Where the held-out blocks come from."""

    def tensors(self) -> dict[str, Tensor]:
        """As they are kept in `blocks.safetensors`."""
        return {**{name: getattr(self, name).to(torch.int32) for name in SPLITS}, RANGES: self.ranges.rows}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Splits:
        """From what is kept there."""
        parts: dict[str, Any] = {name: tensors[name].long() for name in SPLITS}
        return cls(**parts, ranges=Ranges(tensors.get(RANGES)))


def make_splits(source: str, config: BlocksConfig, tokenizer: Any, seed: int, lineage: Lineage | None = None) -> Splits:
    """Read, tokenize and cut a source, and draw the splits from it at random without replacement.

    The held-out split comes from `config.held_out_data` where that is given; from the run that the model comes from, where
    that had the same data; from the held-out files of `stdlib`; and else from the same pool. Text that is held out, here
    or there, is left out of the pool.

    Args:
        source: see `RunConfig.data`.
        config: lengths and numbers of blocks.
        tokenizer: of the model.
        seed: of the drawing.
        lineage: of the model.

    Raises:
        RequestError: the source cannot be read or has too few tokens; says how many are there and needed.
    """
    lineage = lineage or Lineage("")
    length = config.sequence_length
    scored = scored_apart(source, config, tokenizer, lineage)
    drawn = [name for name in SPLITS if not (name == "held_out" and scored)]
    needed = sum(getattr(config, name) for name in drawn)
    pool_tokens = max(config.pool_tokens, needed * length)
    without = lineage.ranges + scored.ranges if scored else lineage.ranges
    pool = read_pool(documents(source, config.text_field), tokenizer, length, pool_tokens, without)
    fitted = torch.from_numpy(shared(pool.blocks, lineage.fitted))
    if len(pool.blocks) < needed:
        listed = ", ".join(f"blocks.{name} {getattr(config, name)}" for name in drawn)
        raise RequestError(
            f"'{source}' has {len(pool.blocks) * length:,} tokens in whole blocks of {length}, but the splits need "
            f"{needed * length:,} ({listed}). Give more text, or lower these numbers or blocks.sequence_length."
        )
    counts = {name: getattr(config, name) for name in drawn}
    chosen = dict(drawn_interleaved(counts, config.pool_tokens // length, len(pool.blocks), seed, fitted))
    parts = {name: pool.blocks[which] for name, which in chosen.items()}
    if scored:
        return Splits(**parts, held_out=scored.blocks, ranges=scored.ranges)
    if len(chosen["held_out"]) < config.held_out:
        raise RequestError(
            f"Of the {len(pool.blocks)} blocks that were read of '{source}', {int(fitted.sum())} share text with what the model's "
            f"runs were fitted to, so there are no {config.held_out} to hold out (blocks.held_out). Give more text, other "
            "text, or blocks.held_out_data."
        )
    return Splits(**parts, ranges=pool.ranges(chosen["held_out"].tolist()))


def drawn_interleaved(
    counts: Mapping[str, int], pool: int, there: int, seed: int, fitted: Tensor | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Which blocks each split gets, at random without replacement: no split depends on those that are drawn after it.

    Args:
        counts: blocks of each split, in the order of drawing.
        pool: blocks that all are drawn from; beyond them reach only splits that need it.
        there: blocks that there are.
        seed: of the run.
        fitted: (there,) bool: blocks that are not held out, since the model was fitted to their text.
    """
    free, needed = torch.ones(there, dtype=torch.bool), 0
    for name, count in counts.items():
        needed += count
        open_ = free & ~fitted if name == "held_out" and fitted is not None else free
        left = open_[: max(pool, needed)].nonzero().flatten()
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


def scored_apart(source: str, config: BlocksConfig, tokenizer: Any, lineage: Lineage) -> Scored | None:
    """Held-out blocks that do not come from the text that is fitted to; None where there are none such.

    Raises:
        RequestError: their source cannot be read or has too few tokens.
    """
    if not config.held_out_data and (scored := lineage.scored(source)):
        return scored
    apart = held_out_apart(source, config)
    return from_the_beginning(apart, config, tokenizer, lineage) if apart else None


def from_the_beginning(source: str, config: BlocksConfig, tokenizer: Any, lineage: Lineage | None = None) -> Scored:
    """The first `config.held_out` blocks of a source, in order, that share no text with what a lineage was fitted to.

    Raises:
        RequestError: the source cannot be read or has too few tokens.
    """
    length, needed = config.sequence_length, config.held_out
    fitted = lineage.fitted if lineage else []
    free: list[int] = []
    for pool in growing_pools(documents(source, config.text_field, held_out=True), tokenizer, length, needed * length):
        free = (~shared(pool.blocks, fitted)).nonzero()[0].tolist()
        if len(free) >= needed:
            return Scored(pool.blocks[free[:needed]], pool.ranges(free[:needed]))
    known = "of which the model's runs have seen none, " if fitted else ""
    raise RequestError(
        f"The held-out text '{source}' has {len(free) * length:,} tokens in whole blocks of {length}, {known}but "
        f"blocks.held_out = {needed} needs {needed * length:,}. Give more text or lower blocks.held_out."
    )
