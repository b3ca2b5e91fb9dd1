"""`darwinlm bench --table`: what a module of each width takes on this machine, from whole models that take turns.

Letters: L = layers of a probe, A = those of them that can have heads; h = the middle widths of a kind of module. Linear attention
is part of the base.

Each width is measured in a model whose layers all have it, beside modules of the other kind at their middle width: targets
lie there, caches are as full, and operations as many as in the models that are asked for. With T the seconds of a probe
(attention width, MLP width) and 0 for an absent kind:

    attention(a) = (T(a, h) - T(0, h)) / A        mlp(m) = (T(h, m) - T(h, 0)) / L
    base = T(h, h) - A attention(h) - L mlp(h)

so that the model of middle widths is exact but for noise: a module never takes less than one that is narrower, and where
the measured seconds say so, both are evened out. Models of mixed widths, which the table is not made from, check it.
"""

from __future__ import annotations

import operator
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import transformers

from darwinlm.config import RunConfig
from darwinlm.database.levels import ladders
from darwinlm.errors import RequestError
from darwinlm.export.gguf.file import check_gguf
from darwinlm.measure.bench import with_threads
from darwinlm.measure.engines import engine_of, load_code, open_rival
from darwinlm.measure.in_transformers import Loaded
from darwinlm.measure.in_vllm import VllmRival, Worker
from darwinlm.measure.probes import Probes
from darwinlm.measure.rival import Rival, Workload
from darwinlm.measure.timing import interleaved
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.runtime.device import choose_device, choose_dtype, device_name
from darwinlm.runtime.progress import progress
from darwinlm.runtime.seeds import python_random
from darwinlm.target.latency import LatencyTable, Stage, StageTimes, Work, model_key
from darwinlm.target.shapes import Heads, Shapes, possible_shapes

Widths = TypeVar("Widths", bound="tuple[int, ...]")
LARGEST_PROBE = 4_000_000_000
"""Bytes of a dense model up to which probes have all its layers."""
LAYERS_OF_LARGE = 8
CHECKS = 4
"""Models of mixed widths that check the table."""
STAGES: tuple[Stage, ...] = ("prefill", "decode")


def measure_table(config: RunConfig) -> LatencyTable:
    """Measure the modules of a model on this machine.

    Args:
        config: model, device, dtype, seed, `database` (which levels there are) and `bench` (the workloads) count.

    Raises:
        RequestError: the request cannot be fulfilled; raised before anything is measured.
    """
    source = ModelSource(config.model, weights=False)
    works = [
        Workload(s, t, config.bench.decode_tokens)
        for s in config.bench.batch_sizes
        for t in config.bench.context_lengths
    ]
    source.require_context(max(work.tokens + work.written + 1 for work in works))
    shapes = possible_shapes(source.shape, ladders(source.shape, config.database))
    if not shapes.attention or not shapes.mlp:
        raise RequestError(f"'{config.model}' has no attention or no MLP left, so there is nothing to exchange.")
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    if (engine := engine_of(config.model, config)) == "vllm-server":
        raise RequestError("A latency table is measured offline: give --bench.engine vllm.")
    load_code(config.model, config)
    if engine == "llama.cpp":
        check_gguf(source, free=True)
    with with_threads(config.bench.threads):
        stages = [times for work in works for times in _measured(config, source, shapes, work, device, dtype)]
        machine = {
            "device": device_name(device),
            "engine": engine,
            "dtype": config.bench.gguf if engine == "llama.cpp" else str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **_versions(engine),
        }
    return LatencyTable(model_key(source.shape), machine, tuple(stages))


def _versions(engine: str) -> dict[str, str]:
    if engine == "transformers":
        return {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"xllamacpp": version("xllamacpp")} if engine == "llama.cpp" else {}


def _measured(
    config: RunConfig, source: ModelSource, shapes: Shapes, work: Workload, device: torch.device, dtype: torch.dtype
) -> list[StageTimes]:
    """The times of both stages of a workload."""
    layers = len(source.shape.layers)
    linear = any(widths.linear for widths in source.shape.layers)  # of all layers, since none has a time of its own
    if source.shape.parameters * dtype.itemsize > LARGEST_PROBE and not linear:
        layers = min(layers, LAYERS_OF_LARGE)
    like = source.shape.layers[:layers]
    probes, middle = Probes(source, device, dtype, config.seed), shapes.middle
    pairs = {(heads, middle[1]) for heads in [*shapes.attention, (0, 0)]}
    pairs |= {(middle[0], width) for width in [*shapes.mlp, 0]}
    whole = {pair: [LayerWidths(*pair[0], pair[1]).as_in(own) for own in like] for pair in sorted(pairs)}
    mixed = _mixed(shapes, like, config.seed)
    models = [*whole.values(), *mixed, list(like)]
    title = f"{len(models)} models, {work.sequences} x {work.tokens} tokens"
    with TemporaryDirectory(prefix="darwinlm-", ignore_cleanup_errors=True) as scratch:
        rivals = list(_rivals(config, probes, models, Path(scratch)))
        with progress(title, config.bench.warmups + config.bench.repeats) as advance:
            calls = [lambda rival=rival: rival.run(work) for rival in rivals]
            taken = interleaved(calls, repeats=config.bench.repeats, warmups=config.bench.warmups, advance=advance)
    found = []
    for stage in STAGES:
        seconds = _without_drift([rounds[stage] for rounds in taken])
        times = solved(dict(zip(whole, seconds)), shapes, layers, sum(not own.linear for own in like))
        checks = zip(mixed, seconds[len(whole) :])
        found.append(_with_checks(times, Work(stage, **vars(work)), list(checks), seconds[-1], source.shape, layers))
    return found


def _rivals(
    config: RunConfig, probes: Probes, models: Sequence[Sequence[LayerWidths]], scratch: Path
) -> Iterator[Loaded | Rival]:
    """Models of such layers in the engine that is asked for. vLLM holds one at a time, so each turn opens it again."""
    engine = engine_of(config.model, config)
    worker = Worker(config) if engine == "vllm" else None
    for place, widths in enumerate(models):
        if engine == "transformers":
            yield Loaded(probes.model(widths), probes.source.shape.vocabulary, config.seed)
            continue
        folder = probes.checkpoint(widths, scratch / str(place))
        yield VllmRival(str(folder), config, worker) if worker else open_rival(str(folder), config)
        if not worker:
            shutil.rmtree(folder)


def _without_drift(taken: list[list[float]]) -> list[float]:
    """The median seconds of each model, after every round was scaled to take as long in all as the median round."""
    rounds = [sum(seconds) for seconds in zip(*taken)]
    usual = statistics.median(rounds)
    return [statistics.median(s * usual / whole for s, whole in zip(seconds, rounds)) for seconds in taken]


@dataclass(frozen=True)
class Solved:
    """Seconds by parts; see the head of this file."""

    base: float
    attention: dict[Heads, float]
    mlp: dict[int, float]

    def of(self, widths: Sequence[LayerWidths]) -> float:
        """Seconds of a whole probe."""
        return self.base + sum(self.attention[w.heads, w.kv_heads] + self.mlp[w.intermediate] for w in widths)


def solved(seconds: dict[tuple[Heads, int], float], shapes: Shapes, layers: int, with_heads: int) -> Solved:
    """The parts of the seconds of uniform models.

    Args:
        seconds: (attention width, MLP width) -> of a probe.
        shapes: that were measured.
        layers: L, of a probe.
        with_heads: A, of a probe.
    """
    heads, width = shapes.middle
    absent: Heads = (0, 0)
    attention = {a: max(0.0, (seconds[a, width] - seconds[absent, width]) / with_heads) for a in shapes.attention}
    mlp = {m: max(0.0, (seconds[heads, m] - seconds[heads, 0]) / layers) for m in shapes.mlp}
    attention = rising(attention)
    mlp = {m: took for (m,), took in rising({(m,): took for m, took in mlp.items()}).items()}
    base = seconds[heads, width] - with_heads * attention[heads] - layers * mlp[width]
    return Solved(max(0.0, base), {**attention, absent: 0.0}, {**mlp, 0: 0.0})


def rising(seconds: Mapping[Widths, float]) -> dict[Widths, float]:
    """Seconds that never fall where every width of a module grows.

    The middle between the most that a narrower module takes and the least that a wider one does; both include the module
    itself, so that seconds that rise already stay as they are.
    """

    def middle(widths: Widths) -> float:
        below = max(took for other, took in seconds.items() if all(map(operator.le, other, widths)))
        above = min(took for other, took in seconds.items() if all(map(operator.ge, other, widths)))
        return (below + above) / 2

    return {widths: middle(widths) for widths in seconds}


def _mixed(shapes: Shapes, like: Sequence[LayerWidths], seed: int) -> list[list[LayerWidths]]:
    """Models whose layers differ, absent modules among them."""
    rng = python_random(seed, "mixed widths")
    attention: list[Heads] = [*shapes.attention, (0, 0)]
    return [
        [LayerWidths(*rng.choice(attention), rng.choice([*shapes.mlp, 0])).as_in(own) for own in like]
        for _ in range(CHECKS)
    ]


def _with_checks(
    parts: Solved,
    work: Work,
    checks: list[tuple[list[LayerWidths], float]],
    dense: float,
    shape: ModelShape,
    layers: int,
) -> StageTimes:
    """Times with the checks told; where a probe has fewer layers, the dense model's are those measured and the others."""
    deeper = [parts.attention[w.heads, w.kv_heads] + parts.mlp[w.intermediate] for w in shape.layers[layers:]]
    told = tuple((parts.of(widths), measured) for widths, measured in checks)
    attention = {heads: seconds for heads, seconds in parts.attention.items() if heads[0]}
    mlp = {width: seconds for width, seconds in parts.mlp.items() if width}
    return StageTimes(work, dense + sum(deeper), parts.base, attention, mlp, told)
