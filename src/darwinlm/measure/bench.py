"""`darwinlm bench`: speed and memory of models that take turns in one run, in transformers, llama.cpp or vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from darwinlm.config import BenchConfig, RunConfig, to_dict
from darwinlm.errors import RequestError
from darwinlm.measure.engines import engine_of, load_code, open_rival
from darwinlm.measure.memory import peak_memory
from darwinlm.measure.pictures import draw_bench
from darwinlm.measure.rival import Facts, Rival, Workload, is_gguf
from darwinlm.measure.timing import Spread, interleaved, ratios
from darwinlm.models.source import ModelSource
from darwinlm.runtime.device import choose_device, device_name
from darwinlm.runtime.files import write_json
from darwinlm.runtime.progress import log, progress

STAGES = ("prefill", "decode")
"""Reading the prompt until the first token is there; writing the others."""


@dataclass(frozen=True)
class Measurement:
    """One model at one piece of work."""

    work: Workload
    prefill_seconds: Spread
    """The time to the first token."""
    decode_seconds: Spread
    """For all tokens after the first ones."""
    memory_bytes: int | None
    """See `measure.memory`; None where the system does not tell."""
    cache_bytes_per_token: float
    """KV cache for each token of each sequence."""
    prefill_speedup: Spread | None
    """The dense model's seconds by this one's, round by round; None for the first model."""
    decode_speedup: Spread | None

    def tokens_per_second(self, stage: str) -> float:
        """Median speed of a stage over all sequences."""
        tokens = self.work.prefill_tokens if stage == "prefill" else self.work.decode_tokens
        return tokens / getattr(self, f"{stage}_seconds").median


@dataclass(frozen=True)
class BenchResult:
    """A whole run; the first model is the one that the others are compared with."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    models: list[Facts]
    measurements: list[list[Measurement]]
    """For each model, in the order of the work."""

    def layer_ratio(self, model: int) -> float:
        """How many times more parameters the first model's layers have: the speed-up that they promise."""
        return self.models[0].layer_parameters / self.models[model].layer_parameters

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what is derived."""
        values = dataclasses.asdict(self)
        for index, (model, rows) in enumerate(zip(values["models"], values["measurements"])):
            model["layer_ratio"] = self.layer_ratio(index)
            for row, measured in zip(rows, self.measurements[index]):
                row |= {f"{stage}_tokens_per_second": measured.tokens_per_second(stage) for stage in STAGES}
        return values


def run_bench(models: Sequence[str], config: RunConfig) -> BenchResult:
    """Measure models against each other; they take turns at every piece of work.

    Args:
        models: folders, hub ids, or paths of .gguf files; the first is compared with.
        config: device, dtype, seed and `bench` count.

    Raises:
        RequestError: a model cannot be measured so; raised before any is loaded.
    """
    _check(models, config)
    bench = config.bench
    work = [Workload(s, t, bench.decode_tokens) for s in bench.batch_sizes for t in bench.context_lengths]
    with with_threads(bench.threads):
        log.info("Measuring memory, each model in a process of its own.")
        memory = [peak_memory(name, config, work) for name in models]
        rivals = [open_rival(name, config) for name in models]
        by_work = [_measure(rivals, piece, bench, [held[i] for held in memory]) for i, piece in enumerate(work)]
        machine = _machine(config, on_cpu=engine_of(models[0], config) == "llama.cpp")
    return BenchResult(
        machine, to_dict(bench), [rival.facts for rival in rivals], [list(rows) for rows in zip(*by_work)]
    )


def save_bench(result: BenchResult, folder: Path) -> tuple[Path, Path]:
    """Write `bench.json` and `bench.png` into a folder; returns their paths."""
    numbers, picture = folder / "bench.json", folder / "bench.png"
    write_json(numbers, result.as_dict())
    draw_bench(result.as_dict(), picture)
    return numbers, picture


def _measure(
    rivals: list[Rival], work: Workload, bench: BenchConfig, memory: list[int | None]
) -> Iterator[Measurement]:
    title = f"{work.sequences} x {work.tokens} tokens"
    with progress(title, bench.warmups + bench.repeats) as advance:
        calls = [lambda rival=rival: rival.run(work) for rival in rivals]
        taken = interleaved(calls, repeats=bench.repeats, warmups=bench.warmups, advance=advance)
    for rival, seconds, held in zip(rivals, taken, memory):
        first = rival is rivals[0]
        yield Measurement(
            work=work,
            prefill_seconds=Spread.of(seconds["prefill"]),
            decode_seconds=Spread.of(seconds["decode"]),
            memory_bytes=held,
            cache_bytes_per_token=rival.cache_bytes_per_token(work),
            prefill_speedup=None if first else ratios(taken[0]["prefill"], seconds["prefill"]),
            decode_speedup=None if first else ratios(taken[0]["decode"], seconds["decode"]),
        )


def _check(models: Sequence[str], config: RunConfig) -> None:
    if len({engine_of(name, config) for name in models}) > 1:
        raise RequestError(
            f"{' and '.join(map(repr, models))} belong to different engines, whose speeds say nothing of the models. "
            "Give .gguf files alone, checkpoints alone, or --bench.engine llama.cpp, which makes files of checkpoints."
        )
    longest = max(config.bench.context_lengths) + config.bench.decode_tokens + 1
    for name in models:
        load_code(name, config)
        if (limit := _context(name, config)) is not None and longest > limit:
            raise RequestError(
                f"'{name}' reads at most {limit} tokens, but bench.context_lengths and bench.decode_tokens make "
                f"{longest}. Lower one of them."
            )
    choose_device(config.device)


def _context(name: str, config: RunConfig) -> int | None:
    """Longest sequence that a model was made for; opening it finds what is wrong with it."""
    if is_gguf(name):
        from darwinlm.measure.in_llamacpp import read_gguf

        return read_gguf(name).context
    source = ModelSource(name, packed=True)
    return getattr(source.config, "max_position_embeddings", None)


@contextmanager
def with_threads(wanted: int | None) -> Iterator[None]:
    """Compute with so many CPU threads for a while."""
    usual = torch.get_num_threads()
    torch.set_num_threads(wanted or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _machine(config: RunConfig, *, on_cpu: bool) -> dict[str, Any]:
    device = torch.device("cpu") if on_cpu else choose_device(config.device)
    return {"device": device_name(device), "threads": torch.get_num_threads()}
