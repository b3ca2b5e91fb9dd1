"""What is wrong with settings by themselves, found before any file is opened."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise

from darwinlm.config.prediction import plan_faults
from darwinlm.config.settings import BenchConfig, BlocksConfig, RunConfig, SearchConfig, ShearedConfig
from darwinlm.config.training_checks import train_faults
from darwinlm.config.wishes import wish_faults


def faults(config: RunConfig, without: Collection[str] = ()) -> list[str]:
    """Everything that is wrong with the settings by themselves, found before any file is opened.

    Args:
        config: the settings.
        without: groups that do not count.
    """
    blocks, database, search, target = config.blocks, config.database, config.search, config.target
    found: list[str] = []

    def check(holds: bool, message: str) -> None:
        if not holds:
            found.append(message)

    for group, names in (
        (blocks, ("hessian", "train", "select", "held_out", "pool_tokens")),
        (database, ("multiple_of", "tensor_parallel", "batch_sequences")),
        (search, ("offspring", "batch_sequences", "switches")),
    ):
        section = type(group).__name__.removesuffix("Config").lower()
        for name in names if section not in without else ():
            value = getattr(group, name)
            check(value >= 1, f"{section}.{name} is {value}; it must be at least 1.")
    check(blocks.sequence_length >= 2, f"blocks.sequence_length is {blocks.sequence_length}; it must be at least 2.")
    check(database.levels >= 2, f"database.levels is {database.levels}; it must be at least 2: dense, and gone.")
    check(
        database.rel_damp == "auto" or (database.rel_damp > 0 and math.isfinite(database.rel_damp)),
        f"database.rel_damp is {database.rel_damp}; it must be positive, such as 0.01, or auto.",
    )
    found += wish_faults(target, database.levels) if "target" not in without else []
    check(
        search.learning_rate >= 0 and math.isfinite(search.learning_rate),
        f"search.learning_rate is {search.learning_rate}; it must be 0 or positive, such as 1e-5.",
    )
    check(
        not config.data or blocks.held_out_data != config.data,
        f"blocks.held_out_data is the same as data, '{config.data}', so it would be scored on what it was fitted to. "
        "Leave it out: held-out blocks are then drawn apart from the others.",
    )
    check(config.refit.tokens >= 0, f"refit.tokens is {config.refit.tokens}; it must be positive, or 0 for no refit.")
    check(
        not config.refit.tokens or blocks.hessian != 1,
        "blocks.hessian is 1, but the refit needs 2 blocks, one to check what it fitted to the other. Raise it, or set "
        "refit.tokens to 0.",
    )
    for name in ("generations", "start_rounds", "sequence_tokens", "check_every", "patience"):
        check(getattr(search, name) >= 0, f"search.{name} is {getattr(search, name)}; it must be 0 or more.")
    check(
        0 <= search.confidence < math.inf,
        f"search.confidence is {search.confidence}; it must be 0 or positive, such as 2: standard errors of the lead.",
    )
    check(search.start_tokens >= 2, f"search.start_tokens is {search.start_tokens}; it must be at least 2.")
    found += _stage_faults(search, blocks) if "search" not in without and search.generations else []
    found += train_faults(config.train) if "train" not in without else []
    return found + _sheared_faults(config.sheared) + _bench_faults(config.bench) + plan_faults(config.plan)


def _stage_faults(search: SearchConfig, blocks: BlocksConfig) -> list[str]:
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


def _sheared_faults(sheared: ShearedConfig) -> list[str]:
    return [
        f"sheared.{name} is {value}; it must be {wanted}."
        for name, value, holds, wanted in (
            ("tokens", sheared.tokens, sheared.tokens == 0 or sheared.tokens >= 2, "0 or at least 2"),
            (
                "learning_rate",
                sheared.learning_rate,
                0 <= sheared.learning_rate < math.inf,
                "0 or positive, such as 1e-4",
            ),
            (
                "mask_learning_rate",
                sheared.mask_learning_rate,
                0 < sheared.mask_learning_rate < math.inf,
                "positive, such as 0.05",
            ),
            ("warm_up", sheared.warm_up, 0 <= sheared.warm_up <= 1, "between 0 and 1"),
        )
        if not holds
    ]


def _bench_faults(bench: BenchConfig) -> list[str]:
    found = [
        f"bench.{name} is {value}; it must be at least {least}."
        for name, value, least in (
            ("decode_tokens", bench.decode_tokens, 1),
            ("repeats", bench.repeats, 1),
            ("warmups", bench.warmups, 0),
            ("threads", 1 if bench.threads is None else bench.threads, 1),
        )
        if value < least
    ]
    for name, values in (("batch_sizes", bench.batch_sizes), ("context_lengths", bench.context_lengths)):
        if not values or min(values) < 1:
            found.append(f"bench.{name} is {values}; it must be a list of numbers that are at least 1, such as [1, 8].")
    return found
