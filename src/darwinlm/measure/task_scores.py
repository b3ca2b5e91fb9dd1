"""What models score at tasks, side by side: rows, Markdown, JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
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
class TaskComparison:
    """Models at the same tasks."""

    models: dict[str, str]
    """{`dense` or `model`: its path or hub id}, in the order of the columns."""
    scores: dict[str, list[Score]]
    """The same keys in the same order for every model."""
    settings: dict[str, Any]
    """What the numbers depend on besides: tasks, limit, batch size, arithmetic, the harness's version."""
    raw: dict[str, dict[str, Any]]
    """All that the harness says of every part of every task, by model."""

    def average(self, model: str) -> float | None:
        """Mean over the tasks of the metric that counts; None where no task has one."""
        values = [score.value for score in self.scores[model] if score.counts]
        return statistics.fmean(values) if values else None

    @classmethod
    def of(cls, values: dict[str, Any]) -> TaskComparison:
        """A comparison from what `as_dict` made of it; what else stands there is ignored."""
        known = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        scores = {model: [Score(**score) for score in rows] for model, rows in known["scores"].items()}
        return cls(**{**known, "scores": scores})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the averages."""
        return {**dataclasses.asdict(self), "averages": {model: self.average(model) for model in self.models}}


def headings(comparison: TaskComparison) -> list[str]:
    """What stands above the columns of `texts`."""
    return ["task", "shots", "metric", "questions", *comparison.models]


def texts(comparison: TaskComparison) -> Iterable[list[str]]:
    """The rows as people read them; the metric that counts in the average has a star. The average comes last."""
    columns = list(comparison.scores.values())
    for row in zip(*columns, strict=True):
        first = row[0]
        metric = f"{first.metric} *" if first.counts else first.metric
        yield [first.task, str(first.shots), metric, f"{first.questions:,}", *map(_value, row)]
    averages = [comparison.average(model) for model in comparison.models]
    if None not in averages:
        yield ["average of *", "", "", "", *(f"{average:.4f}" for average in averages)]


def _value(score: Score) -> str:
    number = f"{score.value:.4f}" if abs(score.value) < 1000 else f"{score.value:.4g}"
    return number + ("" if score.stderr is None else f" ± {score.stderr:.4f}")


def task_markdown(comparison: TaskComparison) -> str:
    """The table, with what it depends on above it."""
    lines = [f"{label}: `{name}`  " for label, name in comparison.models.items()]
    lines += [", ".join(f"{key} {value}" for key, value in comparison.settings.items()), ""]
    rows = [headings(comparison), ["---"] * len(headings(comparison)), *texts(comparison)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
