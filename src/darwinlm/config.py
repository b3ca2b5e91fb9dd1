"""Every setting of a run: one frozen dataclass per stage, gathered in `RunConfig`.

Units stand in each field's docstring; the command line and `config.yaml` are derived from these classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from darwinlm.errors import RequestError

PRESETS = ("demo", "quick", "paper")


@dataclass(frozen=True)
class BlocksConfig:
    """Text as fixed token blocks in four disjoint splits."""

    sequence_length: int = 2048
    """Tokens in a block."""
    hessian: int = 512
    """Blocks that the Hessians are accumulated on."""
    train: int = 256
    """Blocks that candidates are trained on during the search."""
    select: int = 64
    """Blocks that candidates are scored on during the search."""
    held_out: int = 64
    """Blocks that only the final evaluation reads."""
    held_out_data: str | None = None
    """Separate source of the held-out blocks, read from its beginning; by default they are drawn from the same data."""
    text_field: str = "text"
    """Field that holds the text in .jsonl, .parquet and hub data sets."""
    pool_tokens: int = 8_000_000
    """Tokens that are read before blocks are drawn from them at random; more are read where the splits need more."""


@dataclass(frozen=True)
class DatabaseConfig:
    """Second-order levels of every module."""

    levels: int = 10
    """Steps from dense (level 0) to a module that is gone (the last level)."""
    attention_unit: Literal["auto", "kv_group", "balanced", "query_head"] = "auto"
    """What leaves attention together; `auto` is kv_group where the model has grouped queries."""
    rounding: Literal["equal", "paper"] = "equal"
    """`equal`: as many equal steps as a kind of module allows; `paper`: equations 5 and 6 as printed."""
    multiple_of: int = 32
    """MLP widths are multiples of this many columns."""
    tensor_parallel: int = 1
    """Devices that split the heads of the pruned model: every level keeps query and KV heads in multiples of it."""
    attention_columns: list[int] | None = None
    """Explicit table: columns of the attention output matrix removed at each level, 0 first, all last."""
    mlp_columns: list[int] | None = None
    """Explicit table: columns of the MLP output matrix removed at each level, 0 first, all last."""
    rel_damp: float = 1e-2
    """Damping of the Hessian, relative to the mean of its diagonal."""
    batch_sequences: int = 8
    """Blocks in one forward pass of the calibration."""
    hidden_states: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the activations of all calibration blocks lie; `auto` is the first that has the room."""


@dataclass(frozen=True)
class TargetConfig:
    """What the pruned model must hold."""

    level: float = 5.0
    """Mean level of each kind of module, in steps of `database.levels`; fractions are allowed."""


@dataclass(frozen=True)
class Stage:
    """One step of training-aware selection (Algorithm 1 of arXiv 2502.07780)."""

    survivors: int
    """Candidates that stay."""
    train_tokens: int
    """Tokens that each candidate is trained on before it is scored."""
    select_tokens: int
    """Tokens that each candidate is scored on."""


@dataclass(frozen=True)
class SearchConfig:
    """Evolution with training-aware selection."""

    generations: int = 200
    """Generations from the start to the end of the search."""
    offspring: int = 16
    """Mutated candidates of a generation."""
    survivors: list[int] = field(default_factory=lambda: [8, 4, 2, 1])
    """Candidates that stay after each selection step; decreasing, the last is 1."""
    train_tokens: list[int] = field(default_factory=lambda: [10_000, 50_000, 100_000, 200_000])
    """Tokens that each candidate is trained on, per selection step."""
    select_tokens: list[int] = field(default_factory=lambda: [1024, 2048, 4096, 8192])
    """Tokens that each candidate is scored on, per selection step."""
    learning_rate: float = 1e-5
    """AdamW's learning rate in the trial training."""
    batch_sequences: int = 1
    """Blocks in one optimizer step of the trial training."""
    switches: int = 3
    """Level switches of an offspring are min(u1, u2) with u drawn from 1 to this number."""
    start: Literal["measured", "uniform"] = "measured"
    """The first parent: the best of several by measured sensitivities, or every module at the target (the paper)."""
    start_tokens: int = 8192
    """Tokens that the sensitivities are measured on; all of blocks.select where that has fewer."""
    start_rounds: int = 8
    """Most rounds in which the measured start is refined; it ends earlier where a round finds nothing better."""
    continue_training: bool = False
    """Survivors go on from where the last step left them, up to its number of tokens, instead of anew from the database."""
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    """Candidates' weights in trial training; bfloat16 is rounded stochastically. `auto` is the run's arithmetic."""
    gradient_checkpointing: bool = False
    """Make activations again in the backward pass of the trial training: a third slower, and several times smaller."""
    check_every: int = 10
    """Generations between scores of the parent on the held-out blocks, for the eye alone; 0 never."""
    patience: int = 0
    """Stop after this many generations without a better candidate; 0 never."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The selection steps, first to last."""
        return tuple(map(Stage, self.survivors, self.train_tokens, self.select_tokens))


@dataclass(frozen=True)
class BenchConfig:
    """Speed and memory of checkpoints that take turns."""

    batch_sizes: list[int] = field(default_factory=lambda: [1])
    """Sequences that are read, and then continued, at once; llama.cpp takes one."""
    context_lengths: list[int] = field(default_factory=lambda: [512])
    """Tokens of each sequence that are read."""
    decode_tokens: int = 32
    """Tokens written after the first one, one forward pass for each."""
    repeats: int = 9
    """Rounds that count; in each, every model reads and writes once."""
    warmups: int = 1
    """Rounds before them that do not count."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run; `config.yaml` of a run directory holds it complete, as resolved."""

    model: str = ""
    """Path or hub id of the dense model."""
    data: str = ""
    """Text: a hub data set (streamed), `fineweb-edu`, a .txt, .jsonl or .parquet file, a folder of them, or `stdlib`."""
    output: str = ""
    """Run directory; an existing run of the same model and settings is continued."""
    seed: int = 0
    """Seed of every random choice."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or another torch device."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; `auto` is bfloat16 on a GPU and float32 on a CPU. Hessians and losses are
    float32 always; for the weights of candidates see `search.weights`."""
    trust_remote_code: bool = False
    """Run Python code that ships with the dense model. Off unless asked for."""
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.output).expanduser()


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
        (search, ("generations", "offspring", "batch_sequences", "switches")),
    ):
        section = type(group).__name__.removesuffix("Config").lower()
        for name in names if section not in without else ():
            value = getattr(group, name)
            check(value >= 1, f"{section}.{name} is {value}; it must be at least 1.")
    check(blocks.sequence_length >= 2, f"blocks.sequence_length is {blocks.sequence_length}; it must be at least 2.")
    check(database.levels >= 2, f"database.levels is {database.levels}; it must be at least 2: dense, and gone.")
    check(
        database.rel_damp > 0 and math.isfinite(database.rel_damp),
        f"database.rel_damp is {database.rel_damp}; it must be positive, such as 0.01.",
    )
    check(
        "target" in without or 0 < target.level < database.levels,
        f"target.level is {target.level:g}; it must lie between 0 (dense) and {database.levels} (nothing left), both excluded.",
    )
    check(
        search.learning_rate >= 0 and math.isfinite(search.learning_rate),
        f"search.learning_rate is {search.learning_rate}; it must be 0 or positive, such as 1e-5.",
    )
    check(
        not config.data or blocks.held_out_data != config.data,
        f"blocks.held_out_data is the same as data, '{config.data}', so it would be scored on what it was fitted to. "
        "Leave it out: held-out blocks are then drawn apart from the others.",
    )
    for name in ("start_rounds", "check_every", "patience"):
        check(getattr(search, name) >= 0, f"search.{name} is {getattr(search, name)}; it must be 0 or more.")
    found += _stage_faults(search, blocks) if "search" not in without else []
    return found + _bench_faults(config.bench)


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
    if search.continue_training and any(a > b for a, b in pairwise(search.train_tokens)):
        found.append(
            f"search.train_tokens is {search.train_tokens}; with search.continue_training the numbers must not fall: "
            "each is what a survivor has seen in all."
        )
    if search.start_tokens < 2:
        found.append(f"search.start_tokens is {search.start_tokens}; it must be at least 2.")
    for name, pool in (("train_tokens", blocks.train), ("select_tokens", blocks.select)):
        floor = 0 if name == "train_tokens" else 2
        wrong = [tokens for tokens in getattr(search, name) if not floor <= tokens <= pool * blocks.sequence_length]
        if wrong:
            split = name.removesuffix("_tokens")
            found.append(
                f"search.{name} asks for {wrong} tokens; each must lie between {floor} and {pool * blocks.sequence_length} "
                f"(blocks.{split} x blocks.sequence_length)."
            )
    return found


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


def settings_parser(without: Collection[str] = (), **options: Any) -> ArgumentParser:
    """A parser whose flags are the fields of `RunConfig`; the command line adds its own on top.

    Args:
        without: fields that get no flag.
        options: of the parser.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_class_arguments(RunConfig, skip=set(without))
    return parser


def resolve(*layers: Mapping[str, Any], without: Collection[str] = ()) -> RunConfig:
    """Settings from nested plain data; later layers win, what none names keeps its default.

    Args:
        layers: as in `config.yaml`.
        without: groups that are not checked.

    Raises:
        RequestError: a setting is unknown, ill-typed or impossible; all impossible ones are named at once.
    """
    parser, asked = settings_parser(), merge(*layers)
    if found := _misnamed(asked, to_dict(RunConfig())):
        raise RequestError(*found)
    try:
        values = parser.parse_object(asked)
    except ArgumentError as fault:
        raise RequestError(f"The settings do not fit: {' '.join(str(fault).split())}") from fault
    config = RunConfig(**vars(parser.instantiate(values)))
    if found := faults(config, without):
        raise RequestError(*found)
    return config


def _misnamed(asked: Mapping[str, Any], known: Mapping[str, Any], group: str = "") -> list[str]:
    """Settings that do not exist, groups that are none, and values that are empty but must not be."""
    found: list[str] = []
    for key, value in asked.items():
        name = f"{group}{key}"
        if key not in known:
            found.append(f"There is no setting '{name}'; there are: {', '.join(known)}.")
        elif isinstance(known[key], dict) and not isinstance(value, Mapping):
            found.append(f"'{name}' is {value!r}; it must be a group of settings: {', '.join(known[key])}.")
        elif isinstance(known[key], dict):
            found += _misnamed(value, known[key], f"{name}.")
        elif value is None and known[key] is not None:
            found.append(f"'{name}' is empty; leave it out for its default, {known[key]!r}.")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A settings dataclass as plain data for YAML and JSON."""
    return dataclasses.asdict(config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file.

    Raises:
        RequestError: the file cannot be read or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RequestError(f"Cannot read the settings in '{path}': {fault.strerror}.") from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise RequestError(f"'{path}' is not valid YAML: {fault}") from fault
    if not isinstance(values, dict):
        raise RequestError(f"'{path}' must hold settings as `name: value` lines.")
    return values


def preset_values(name: str) -> dict[str, Any]:
    """The settings of a named preset."""
    if name not in PRESETS:
        raise RequestError(f"There is no preset '{name}'; the presets are: {', '.join(PRESETS)}.")
    return read_yaml(Path(__file__).parent / "presets" / f"{name}.yaml")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Join nested settings; later layers win."""
    joined: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = joined.get(key)
            joined[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return joined
