"""What modules of each width take on one machine: the table that `darwinlm bench --table` measures, and its use.

A model's time is a part that every model of this depth takes, and a part of each module's widths. The parts were measured
beside modules at half their width (`measure.table`), which is where targets lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from darwinlm.config import TargetConfig
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.runtime.device import device_name
from darwinlm.runtime.files import read_json, write_json
from darwinlm.runtime.output import pasted

FORMAT = 1
PICOSECONDS = 10**12
"""In a second: times are counted in them, so that sums are exact."""
Stage = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Work:
    """A stage of a workload: S sequences of T tokens are read (`prefill`), or `written` more tokens of each written."""

    stage: Stage
    sequences: int
    tokens: int
    written: int


@dataclass(frozen=True)
class StageTimes:
    """Seconds of a stage of one workload."""

    work: Work
    dense: float
    """The whole dense model, measured."""
    base: float
    """What every model of this depth takes, whatever its modules."""
    attention: Mapping[tuple[int, int], float]
    """(query heads, KV heads) -> one module."""
    mlp: Mapping[int, float]
    """Intermediate size -> one module."""
    checks: tuple[tuple[float, float], ...] = ()
    """(predicted, measured) seconds of whole models that the table was not made from."""
    engine: str = "transformers"
    """That took them; no part of `as_dict`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "work": vars(self.work),
            "dense": self.dense,
            "base": self.base,
            "attention": [[*heads, seconds] for heads, seconds in self.attention.items()],
            "mlp": [[width, seconds] for width, seconds in self.mlp.items()],
            "checks": self.checks,
        }

    def module_seconds(self, widths: LayerWidths) -> float:
        """What the modules of a layer add; absent ones nothing.

        Raises:
            RequestError: a width was not measured.
        """
        try:
            attention = self.attention[widths.heads, widths.kv_heads] if widths.heads else 0.0
            return attention + (self.mlp[widths.intermediate] if widths.intermediate else 0.0)
        except KeyError as missing:
            raise RequestError(
                f"The latency table has no module of width {missing}. Measure again with the same database settings: "
                "`darwinlm bench MODEL --table`."
            ) from missing

    @property
    def worst_error(self) -> float:
        """The largest relative error of the predictions that were checked."""
        return max((abs(predicted / measured - 1) for predicted, measured in self.checks), default=0.0)

    def predicted(self, shape: ModelShape) -> float:
        """Seconds of a whole model."""
        return self.base + sum(map(self.module_seconds, shape.layers))


@dataclass(frozen=True)
class LatencyTable:
    """All stages that were measured, and where."""

    model: str
    """`model_key` of the dense model."""
    machine: Mapping[str, Any]
    """Device, threads, engine, dtype and library versions."""
    stages: tuple[StageTimes, ...]

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        stages = [times.as_dict() for times in self.stages]
        write_json(path, {"format": FORMAT, "model": self.model, "machine": dict(self.machine), "stages": stages})

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table.

        Raises:
            RequestError: there is none.
            DamagedFileError: it is not whole, or of another version.
        """
        if not path.is_file():
            raise RequestError(
                f"There is no latency table '{path}'. Make one by `darwinlm bench MODEL --table --output {pasted(path.parent)}`."
            )
        saved = read_json(path)
        try:
            if saved["format"] != FORMAT:
                raise ValueError(f"format {saved['format']}")
            engine = saved["machine"].get("engine", "transformers")
            return cls(saved["model"], saved["machine"], tuple(_stage_times(each, engine) for each in saved["stages"]))
        except (KeyError, TypeError, ValueError) as fault:
            raise DamagedFileError(
                f"'{path}' is no latency table of this version ({fault}). Make it again by `darwinlm bench MODEL --table`."
            ) from fault


def _stage_times(saved: dict[str, Any], engine: str) -> StageTimes:
    return StageTimes(
        work=Work(**saved["work"]),
        dense=float(saved["dense"]),
        base=float(saved["base"]),
        attention={(int(heads), int(kv_heads)): float(seconds) for heads, kv_heads, seconds in saved["attention"]},
        mlp={int(width): float(seconds) for width, seconds in saved["mlp"]},
        checks=tuple((float(predicted), float(measured)) for predicted, measured in saved["checks"]),
        engine=engine,
    )


def model_key(shape: ModelShape) -> str:
    """What the times of a model's modules depend on."""
    heads = ["linear" if w.linear else f"{w.heads}/{w.kv_heads}" for w in shape.layers]
    layers = ",".join(f"{own}/{w.intermediate}" for own, w in zip(heads, shape.layers))
    biases = "".join(str(int(there)) for there in shape.biases)
    kept = f"{shape.family.model_type} hidden {shape.hidden} head {shape.head_dim} vocabulary {shape.vocabulary}"
    return f"{kept} biases {biases} layers {layers}"


def times_for(target: TargetConfig, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> StageTimes | None:
    """The times that a target's speed-up is counted in; None where none is asked.

    Args:
        target: workload and table.
        shape: the dense model.
        device: that the run computes on.
        dtype: arithmetic of the run; an engine other than transformers has one of its own.

    Raises:
        RequestError: the table is of another model, device, dtype or workload; says what was measured and what to do.
    """
    if target.speedup is None:
        return None
    path = Path(target.latency_table or "").expanduser()
    table = LatencyTable.load(path)
    found = {"model": table.model, "device": table.machine.get("device"), "dtype": table.machine.get("dtype")}
    wanted = {"model": model_key(shape), "device": device_name(device), "dtype": str(dtype).removeprefix("torch.")}
    if table.machine.get("engine", "transformers") != "transformers":
        del found["dtype"]
    faults = [
        f"The latency table '{path}' was measured with {name} '{found[name]}', and the run has '{wanted[name]}'. Make one "
        "for this run by `darwinlm bench MODEL --table`, with the same --device and --dtype."
        for name in found
        if found[name] != wanted[name]
    ]
    asked = (target.workload, target.batch, target.context)
    for times in table.stages:
        if (times.work.stage, times.work.sequences, times.work.tokens) == asked and not faults:
            return times
    if not faults:
        there = "; ".join(f"{t.work.stage} {t.work.sequences} x {t.work.tokens}" for t in table.stages)
        faults.append(
            f"The latency table '{path}' has no workload {asked[0]} {asked[1]} x {asked[2]} tokens, but {there}. Ask for one "
            f"of these, or make another table with --bench.batch_sizes [{asked[1]}] --bench.context_lengths [{asked[2]}]."
        )
    raise RequestError(*faults)
