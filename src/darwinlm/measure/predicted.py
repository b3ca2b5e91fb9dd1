"""What a latency table predicts for models, beside what `darwinlm bench` measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.config import RunConfig
from darwinlm.errors import RequestError
from darwinlm.measure.bench import BenchResult
from darwinlm.measure.engines import engine_of
from darwinlm.measure.rival import is_gguf
from darwinlm.models.source import ModelSource
from darwinlm.target.latency import LatencyTable, StageTimes


@dataclass(frozen=True)
class Prediction:
    """One model at a stage of a workload."""

    model: str
    times: StageTimes
    predicted: float
    """Seconds."""
    measured: float
    """Seconds, the median."""
    predicted_speedup: float
    """The table's seconds of the dense model by those predicted."""
    measured_speedup: float | None
    """None for the first model."""

    @property
    def error(self) -> float:
        """Predicted by measured seconds, less 1."""
        return self.predicted / self.measured - 1


def require_same_engine(table: LatencyTable, name: str, config: RunConfig) -> None:
    """Check that a model will run in the engine that a table was measured in, with matrices of the table's kind.

    Raises:
        RequestError: it will not.
    """
    if not is_gguf(name):
        ModelSource(name, weights=False)  # refuses packed whole numbers, which take other times
    there, here = table.machine.get("engine", "transformers"), engine_of(name, config).removesuffix("-server")
    if there != here:
        raise RequestError(
            f"The latency table was measured in {there}, and these models run in {here}. Give --bench.engine {there}, or a "
            f"table of {here}."
        )


def predictions(result: BenchResult, table: LatencyTable) -> list[Prediction]:
    """Of all models and all stages that both were measured.

    Raises:
        RequestError: no workload is in both.
    """
    found: list[Prediction] = []
    for facts, rows in zip(result.models, result.measurements):
        shape = ModelSource(facts.name, weights=False).shape
        both = ((times, row) for row in rows for times in table.stages)
        for times, row in both:
            if vars(times.work) != {"stage": times.work.stage, **vars(row.work)}:
                continue
            stage, seconds = times.work.stage, times.predicted(shape)
            measured, speedup = getattr(row, f"{stage}_seconds").median, getattr(row, f"{stage}_speedup")
            ratio = None if speedup is None else speedup.median
            found.append(Prediction(facts.name, times, seconds, measured, times.dense / seconds, ratio))
    if not found:
        raise RequestError(
            f"The latency table has none of the workloads that were measured, but {_listed(table.stages)}."
        )
    return found


def _listed(stages: Sequence[StageTimes]) -> str:
    works = {f"{t.work.sequences} x {t.work.tokens} tokens and {t.work.written} more written" for t in stages}
    return "; ".join(sorted(works))
