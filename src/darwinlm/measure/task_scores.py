"""What models score at tasks, side by side."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """One metric of one task for one model."""

    task: str
    shots: int
    """Solved examples in front of each question."""
    metric: str
    value: float
    stderr: float | None
    """Standard error over the questions; None where the harness has none for this metric."""
    questions: int
    counts: bool
    """Whether it is the task's part of the average."""


@dataclass(frozen=True)
class Difference:
    """A score of one model less the same of another, paired by document (`answers.differences`)."""

    task: str
    shots: int
    metric: str
    value: float
    stderr: float | None
    """Of the mean of the documents' differences; None of a single document."""
    counts: bool
    """Whether it is the task's part of the average."""


PAIRED = (
    "differences are means over documents of (model - first model) at the same request, errors sd / sqrt(documents); of the "
    "average, the mean over tasks and sqrt(sum of squared errors) / tasks"
)
"""What stands beside differences."""


@dataclass(frozen=True)
class TaskComparison:
    """Models at the same tasks."""

    models: dict[str, str]
    """{`dense`, `model` or what was typed of further ones: path or hub id}, in the order of the columns."""
    scores: dict[str, list[Score]]
    """The same keys in the same order for every model."""
    settings: dict[str, Any]
    """What the numbers depend on besides: tasks, limit, batch size, arithmetic, the harness's version."""
    raw: dict[str, dict[str, Any]]
    """All that the harness says of every part of every task, by model."""
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    """Of every model but the first to the first."""

    def average(self, model: str) -> Estimate | None:
        """Mean over the tasks of the metric that counts; None where no task has one."""
        return _mean([score for score in self.scores[model] if score.counts])

    def average_difference(self, model: str) -> Estimate | None:
        """The same of the differences to the first model."""
        return _mean([difference for difference in self.differences[model] if difference.counts])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the averages and what their errors and the differences are."""
        means = {model: self.average(model) for model in self.models}
        apart = {model: self.average_difference(model) for model in self.differences}
        return {
            **dataclasses.asdict(self),
            "averages": {model: mean.value if mean else None for model, mean in means.items()},
            "average_errors": {model: mean.stderr if mean else None for model, mean in means.items()},
            "average_differences": {model: mean and dataclasses.asdict(mean) for model, mean in apart.items()},
            "paired": PAIRED,
        }


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks, which are taken as they are: only their documents vary."""

    value: float
    stderr: float | None
    """Root of the sum of the tasks' squared errors, over their number; None where one has none."""


def _mean(rows: Sequence[Score | Difference]) -> Estimate | None:
    if not rows:
        return None
    errors = [row.stderr for row in rows if row.stderr is not None]
    stderr = math.sqrt(math.fsum(each**2 for each in errors)) / len(rows) if len(errors) == len(rows) else None
    return Estimate(statistics.fmean(row.value for row in rows), stderr)
