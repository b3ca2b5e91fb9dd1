"""What settings must hold together, found before any file is opened; what each must hold by itself stands in its type."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise

from darwinlm.config.settings import BlocksConfig, RunConfig, SearchConfig
from darwinlm.config.target import target_violations
from darwinlm.config.training import TrainConfig

NEEDED = {
    "model": "a folder such as runs/qwen3/model, or a hub id such as Qwen/Qwen3-0.6B",
    "data": "--data with a file, folder, hub data set or stdlib",
    "output": "--output with a run directory",
}
"""What some commands cannot do without, and how it is given."""


def missing(config: RunConfig, names: Collection[str]) -> list[str]:
    """What is to be said of those of `NEEDED` that are not given."""
    return [f"No {name} is given: {NEEDED[name]}." for name in names if not getattr(config, name)]


def violations(config: RunConfig, without: Collection[str] = ()) -> list[str]:
    """Everything that is wrong with settings beside each other.

    Args:
        config: the settings.
        without: groups that do not count.
    """
    blocks, search = config.blocks, config.search
    found = [] if "target" in without else target_violations(config.target, config.database.levels)
    if config.target.formats and search.generations and any(search.train_tokens):
        found.append(
            "target.formats is for candidates that are not trained, since training leaves no format as it is. Set "
            "search.train_tokens to zeros, or search.generations to 0."
        )
    if config.data and blocks.held_out_data == config.data:
        found.append(
            f"blocks.held_out_data is the same as data, '{config.data}', so it would be scored on what it was fitted to. "
            "Leave it out: held-out blocks are then drawn apart from the others."
        )
    if config.refit.tokens and blocks.hessian == 1:
        found.append(
            "blocks.hessian is 1, but the refit needs 2 blocks, one to check what it fitted to the other. Raise it, or set "
            "refit.tokens to 0."
        )
    if config.sheared.tokens == 1:
        found.append("sheared.tokens is 1; it must be 0 or at least 2.")
    found += _stage_violations(search, blocks) if "search" not in without and search.generations else []
    return found + (list(_train_violations(config.train)) if "train" not in without else [])


def _stage_violations(search: SearchConfig, blocks: BlocksConfig) -> list[str]:
    found: list[str] = []
    survivors = search.survivors
    lengths = {name: len(getattr(search, name)) for name in ("survivors", "train_tokens", "select_tokens")}
    if len(set(lengths.values())) > 1 or not survivors:
        listed = ", ".join(f"search.{name} has {count}" for name, count in lengths.items())
        found.append(f"Each selection step needs one entry in each list, but {listed}.")
    decreasing = all(a > b for a, b in pairwise(survivors))
    if survivors and (not decreasing or survivors[-1] != 1):
        found.append(f"search.survivors is {survivors}; the numbers must decrease and end in 1, such as [8, 4, 2, 1].")
    elif survivors and survivors[0] > search.offspring:
        found.append(
            f"search.survivors begins with {survivors[0]}, but a generation has only search.offspring = "
            f"{search.offspring} candidates; raise the one or lower the other."
        )
    for name, pool in (("train_tokens", blocks.train), ("select_tokens", blocks.select)):
        floor = 0 if name == "train_tokens" else 2
        wrong = [tokens for tokens in getattr(search, name) if not floor <= tokens <= pool * blocks.sequence_length]
        if wrong:
            split = name.removesuffix("_tokens")
            found.append(
                f"search.{name} asks for {wrong} tokens; each must lie between {floor} and {pool * blocks.sequence_length} "
                f"(blocks.{split} x blocks.sequence_length)."
            )
    least = 2 * blocks.sequence_length
    if search.training == "refit" and (few := [tokens for tokens in search.train_tokens if 0 < tokens < least]):
        found.append(
            f"search.train_tokens asks for {few} tokens, but a refit needs 2 blocks, one to check what it fitted to the "
            f"other: {least} tokens, or 0 for none."
        )
    return found


def _train_violations(train: TrainConfig) -> Iterator[str]:
    """That `tokens` is still 0 is none, since only `darwinlm train` needs them."""
    if train.teacher_logits and not (train.teacher and train.top_k):
        yield "train.teacher_logits keeps the teacher's most likely tokens: it needs train.teacher and train.top_k, such as 64."
    if train.teacher_logits and train.hidden_weight:
        yield (
            "train.hidden_weight needs the teacher's hidden states, which train.teacher_logits does not keep. Leave one out."
        )
    if train.hidden_weight and not train.teacher:
        yield "train.hidden_weight compares with a teacher, but there is none: add train.teacher with the dense model."
    if train.batch_tokens % train.sequence_length:
        near = max(1, round(train.batch_tokens / train.sequence_length)) * train.sequence_length
        yield (
            f"train.batch_tokens is {train.batch_tokens}, which are no whole sequences of train.sequence_length = "
            f"{train.sequence_length}. Set it to {near}."
        )
    elif train.tokens and train.warmup_steps >= train.steps:
        yield (
            f"train.warmup_steps is {train.warmup_steps}, but {train.tokens:,} tokens are only {train.steps} steps of "
            f"train.batch_tokens = {train.batch_tokens:,}. Lower train.warmup_steps or train.batch_tokens, or give more tokens."
        )
