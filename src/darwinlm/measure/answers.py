"""What models answered at tasks, kept as files, and what follows: scores, and differences paired by document."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darwinlm.errors import DamagedFileError
from darwinlm.measure.harness import LoadedTask
from darwinlm.measure.task_list import USUAL_METRICS
from darwinlm.measure.task_scores import Difference, Score
from darwinlm.runtime.files import read_json, sha256_of, write_text


@dataclass(frozen=True)
class Answers:
    """One model at one task."""

    metrics: dict[str, Any]
    """All that the harness says."""
    shots: int
    """Solved examples in front of each question."""
    documents: dict[str, list[float]]
    """Of each metric that is a mean over documents, the value of every document, in the task's order."""


class Kept:
    """Results in files, so that none is made twice, a kill between them or not.

    Args:
        folder: where they lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def find(self, name: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was made of this identity.

        Raises:
            DamagedFileError: the file is no result.
        """
        path = self._path(name, identity)
        if path is None or not path.exists():
            return None
        try:
            return read_json(path)["result"]
        except (KeyError, TypeError) as fault:
            raise DamagedFileError(f"'{path}' holds no result. Remove it, and type the command again.") from fault

    def keep(self, name: str, identity: Mapping[str, Any], result: Any) -> None:
        """Write a result, whole or not at all."""
        if path := self._path(name, identity):
            write_text(path, json.dumps({"made_from": dict(identity), "result": dataclasses.asdict(result)}) + "\n")

    def _path(self, name: str, identity: Mapping[str, Any]) -> Path | None:
        plain = re.sub(r"[^\w.@-]", "_", name)
        return self.folder / f"{plain}-{sha256_of(dict(identity))[:16]}.json" if self.folder else None


@dataclass(frozen=True)
class _Row:
    """A task whose scores are shown: the mean of its parts, or the one part that it is."""

    name: str
    parts: list[str]
    metrics: dict[str, tuple[float, float | None]]
    """{metric: (value, standard error)}."""
    by_size: dict[str, bool]
    """{metric: whether its parts count by their documents} of a group's metrics that are means."""


def results_of(task: LoadedTask, answers: Mapping[str, Answers]) -> dict[str, Any]:
    """All that the harness says of the parts of a task, and of groups that sum them up."""
    parts = {part: answers[part].metrics for part in task.parts}
    return {**parts, **{name: group.aggregate(parts) for name, group in task.groups.items()}}


def scores(task: LoadedTask, answers: Mapping[str, Answers]) -> list[Score]:
    """One model's scores of all metrics.

    Args:
        task: with its data.
        answers: of its parts.
    """
    found: list[Score] = []
    for row in _rows(task, answers):
        shots = max(answers[part].shots for part in row.parts)
        questions = sum(answers[part].metrics["sample_len"] for part in row.parts)
        chosen = _chosen(task, row)
        for metric, (value, stderr) in row.metrics.items():
            found.append(Score(row.name, shots, metric, value, stderr, questions, counts=metric == chosen))
    return found


def differences(task: LoadedTask, ours: Mapping[str, Answers], theirs: Mapping[str, Answers]) -> list[Difference]:
    """Our scores less theirs, paired by document; of metrics that are means over documents.

    With d the n differences of a task's documents, the value is mean(d) and its standard error sd(d) / sqrt(n), sd with
    n - 1. A group is the sum of w_i mean(d_i) over its parts, and its error the root of the sum of w_i^2 sd(d_i)^2 / n_i.
    """
    found: list[Difference] = []
    for row in _rows(task, ours):
        for metric in row.metrics:
            parts = [_paired(ours[part], theirs[part], metric) for part in row.parts]
            if metric not in row.by_size or None in parts:
                continue
            paired = [part for part in parts if part is not None]
            sizes = [len(part) if row.by_size[metric] else 1 for part in paired]
            weights = [size / sum(sizes) for size in sizes]
            value = math.fsum(weight * statistics.fmean(part) for weight, part in zip(weights, paired))
            stderr = None
            if min(map(len, paired)) > 1:
                variances = (statistics.variance(part) / len(part) for part in paired)
                stderr = math.sqrt(math.fsum(weight**2 * each for weight, each in zip(weights, variances)))
            counts = metric == _chosen(task, row)
            found.append(Difference(row.name, ours[row.parts[0]].shots, metric, value, stderr, counts))
    return found


def _paired(ours: Answers, theirs: Answers, metric: str) -> list[float] | None:
    mine, other = ours.documents.get(metric), theirs.documents.get(metric)
    return None if mine is None or other is None else [a - b for a, b in zip(mine, other, strict=True)]


def _chosen(task: LoadedTask, row: _Row) -> str | None:
    return next((metric for metric in (task.request.metric, *USUAL_METRICS) if metric in row.metrics), None)


def _rows(task: LoadedTask, answers: Mapping[str, Answers]) -> Iterator[_Row]:
    """A group that sums up its parts is one task; of one that does not, and of a tag, every part is."""
    found, name = results_of(task, answers), task.request.name
    if name in task.groups and (metrics := metrics_of(found[name])):
        settings = {each.metric: each for each in task.groups[name].aggregate_metric_list}
        means = {m: settings[m.partition(",")[0]] for m in metrics if m.partition(",")[0] in settings}
        by_size = {m: bool(each.weight_by_size) for m, each in means.items() if each.aggregation == "mean"}
        yield _Row(name, list(task.parts), metrics, by_size)
        return
    for part in task.parts:
        metrics = metrics_of(found[part])
        yield _Row(part, [part], metrics, dict.fromkeys(metrics, True))


def metrics_of(values: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """{metric: (value, standard error)}; a filter that changes answers is part of the metric's name."""
    found: dict[str, tuple[float, float | None]] = {}
    for key, value in values.items():
        metric, comma, filter_ = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_}")
        found[named(metric, filter_)] = (float(value), float(stderr) if isinstance(stderr, (int, float)) else None)
    return found


def named(metric: str, filter_: str) -> str:
    """What a metric of filtered answers is called here."""
    return metric if filter_ == "none" else f"{metric}, {filter_}"
