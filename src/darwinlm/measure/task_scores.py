"""What models score at tasks, side by side: rows, Markdown, JSON."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
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

    @property
    def key(self) -> tuple[str, int, str]:
        """What the same score of another model shares."""
        return self.task, self.shots, self.metric


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
WIDE = 3
"""Models beyond which they are rows, and only what counts in the average is shown."""


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

    @classmethod
    def of(cls, values: dict[str, Any]) -> TaskComparison:
        """A comparison from what `as_dict` made of it; what else stands there is ignored."""
        known = {each.name: values[each.name] for each in dataclasses.fields(cls) if each.name != "differences"}
        scores = {model: [Score(**score) for score in rows] for model, rows in known.pop("scores").items()}
        listed = values.get("differences", {}).items()  # the first edition had none
        return cls(
            **known, scores=scores, differences={name: [Difference(**row) for row in rows] for name, rows in listed}
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the averages and what their errors and the differences are."""
        means = {model: self.average(model) for model in self.models}
        return {
            **dataclasses.asdict(self),
            "averages": {model: mean.value if mean else None for model, mean in means.items()},
            "average_errors": {model: mean.stderr if mean else None for model, mean in means.items()},
            "average_differences": {model: _as_dict(self.average_difference(model)) for model in self.differences},
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


def _as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return dataclasses.asdict(estimate) if estimate else None


Rows = tuple[list[str], list[list[str]]]
"""Headings, and rows as people read them."""


def score_rows(comparison: TaskComparison) -> Rows:
    """The metric that counts in the average has a star. The average comes last."""
    if len(comparison.models) > WIDE:
        return _by_model(comparison, comparison.scores, comparison.average, "")
    rows = []
    for row in zip(*comparison.scores.values(), strict=True):
        first = row[0]
        metric = f"{first.metric} *" if first.counts else first.metric
        rows.append([first.task, str(first.shots), metric, f"{first.questions:,}", *map(_value, row)])
    averages = [comparison.average(model) for model in comparison.models]
    if None not in averages:
        rows.append(["average of *", "", "", "", *map(_value, averages)])
    return ["task", "shots", "metric", "questions", *comparison.models], rows


def difference_rows(comparison: TaskComparison) -> Rows:
    """Every model but the first less the first; no rows where there is one model alone."""
    first = next(iter(comparison.models))
    if not any(comparison.differences.values()):
        return [], []
    if len(comparison.models) > WIDE:
        return _by_model(comparison, comparison.differences, comparison.average_difference, "+")
    rows = []
    for row in zip(*comparison.differences.values(), strict=True):
        metric = f"{row[0].metric} *" if row[0].counts else row[0].metric
        rows.append([row[0].task, str(row[0].shots), metric, *(_value(each, "+") for each in row)])
    averages = [comparison.average_difference(model) for model in comparison.differences]
    if None not in averages:
        rows.append(["average of *", "", "", *(_value(average, "+") for average in averages)])
    return ["task", "shots", "metric", *(f"{model} - {first}" for model in comparison.differences)], rows


def _by_model(comparison: TaskComparison, scored: dict[str, Any], average: Callable[[str], Any], sign: str) -> Rows:
    counted = {model: [row for row in rows if row.counts] for model, rows in scored.items()}
    heads = [f"{row.task} {row.metric}" for row in next(iter(counted.values()))]
    rows = [
        [model, *(_value(row, sign) for row in found), _value(mean, sign) if (mean := average(model)) else "-"]
        for model, found in counted.items()
    ]
    first = f" less {next(iter(comparison.models))}" if sign else ""
    return [f"model{first}", *heads, "average"], rows


def _value(score: Any, sign: str = "") -> str:
    number = f"{score.value:{sign}.4f}" if abs(score.value) < 1000 else f"{score.value:{sign}.4g}"
    return number + ("" if score.stderr is None else f" ± {score.stderr:.4f}")


def task_markdown(comparison: TaskComparison) -> str:
    """The tables, with what they depend on above them."""
    lines = [f"{label}: `{name}`  " for label, name in comparison.models.items()]
    lines += [", ".join(f"{key} {value}" for key, value in comparison.settings.items()), ""]
    lines += _markdown(*score_rows(comparison))
    heads, rows = difference_rows(comparison)
    if rows:
        lines += ["", f"Paired: {PAIRED}.", "", *_markdown(heads, rows)]
    return "\n".join(lines) + "\n"


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in (heads, ["---"] * len(heads), *rows))
    return [f"| {' | '.join(row)} |" for row in escaped]
