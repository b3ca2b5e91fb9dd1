"""lm-evaluation-harness as a library: tasks found and loaded before any model, then asked of models in memory.

Its own answers are given as they are: the same tasks, prompts, seeds and sums as its command line.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darwinlm.errors import RequestError, first_line
from darwinlm.measure.task_list import USUAL_METRICS, TaskRequest
from darwinlm.measure.task_scores import Score


@dataclass(frozen=True)
class LoadedTask:
    """A task with its data."""

    request: TaskRequest
    tasks: dict[str, Any]
    """The harness's own objects: {task or group: ...} and so on, as its manager gives them."""


def require_harness() -> None:
    """Check that the harness is installed, and keep it quiet.

    Raises:
        RequestError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError("--tasks needs lm-evaluation-harness. Install it: pip install 'darwinlm[eval]'.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def load_tasks(requests: Sequence[TaskRequest], include_path: str = "") -> list[LoadedTask]:
    """Find all tasks, then get their data.

    Args:
        requests: what is asked for.
        include_path: a folder with task files of one's own, which come before the harness's.

    Raises:
        RequestError: a task is unknown, its data cannot be had, or it does not take the examples asked for.
    """
    require_harness()
    folder = Path(include_path).expanduser() if include_path else None
    if folder is not None and not folder.is_dir():
        raise RequestError(
            f"There is no folder '{include_path}' for --include-path. Give the folder of the task files."
        )
    _seed()
    names = [request.name for request in requests]
    manager = _manager(names, folder)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise RequestError(*(_unknown(name, manager.all_tasks) for name in unknown))
    return [_load(request, manager) for request in requests]


def _manager(names: list[str], folder: Path | None) -> Any:
    """The harness's index of tasks; that of all it ships is slow to make, and left out where one's own folder will do."""
    from lm_eval.tasks import TaskManager  # slow to import, and needed here alone

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # groups may name tasks from elsewhere
            return own
    return TaskManager(include_path=str(folder) if folder else None)


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 3)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return (
        f"lm-evaluation-harness has no task '{name}'. {hint}`lm-eval ls tasks` lists them; tasks of your own come "
        "with --include-path FOLDER."
    )


def _load(request: TaskRequest, manager: Any) -> LoadedTask:
    try:
        loaded = manager.load([request.name])
    except Exception as fault:  # task files run code of their own, and data sets come from anywhere
        raise RequestError(
            f"The task '{request.name}' cannot be loaded ({type(fault).__name__}: {first_line(fault)}). Check its data set "
            "and the connection, or leave it out."
        ) from fault
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise RequestError(
                f"The task '{name}' runs code that the model writes, which DarwinLM does not do. Leave it out, or ask the "
                "harness's own command line."
            )
        fixed = task.get_config("num_fewshot")
        if request.shots and fixed == 0:
            raise RequestError(f"The task '{name}' takes no examples, but '{request}' asks for {request.shots}.")
        shots = (fixed or 0) if request.shots is None else request.shots
        task.set_config(key="num_fewshot", value=shots)
    return LoadedTask(request, loaded)


def score_tasks(
    loaded: Sequence[LoadedTask], model: Any, tokenizer: Any, *, batch_size: int, limit: int | None
) -> tuple[list[Score], dict[str, Any]]:
    """Ask a model.

    Args:
        loaded: the tasks.
        model: a causal language model in memory.
        tokenizer: its tokenizer.
        batch_size: sequences in a forward pass.
        limit: questions of each task that are asked, the first ones; None for all.

    Returns:
        The scores of all metrics, and {`task@shots`: all that the harness says of its parts}.
    """
    import lm_eval
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.models.huggingface import HFLM

    wrap: Any = HFLM  # its decorators hide what it takes
    ask: Any = lm_eval.evaluate
    answering = wrap(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    scores: list[Score] = []
    raw: dict[str, Any] = {}
    for task in loaded:
        _seed()
        for part in task.tasks["tasks"].values():
            part.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        results = ask(answering, task_dict=task.tasks, limit=limit, log_samples=False)
        raw[str(task.request)] = {**results["results"], **results.get("groups", {})}
        scores += _scores(task, results)
    return scores, raw


def _seed() -> None:
    """The harness reads global generators; these are the seeds of its command line."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


def _scores(task: LoadedTask, results: dict[str, Any]) -> list[Score]:
    """A group that sums up its parts is one task; of one that does not, and of a tag, every part is."""
    found = {**results["results"], **results.get("groups", {})}
    parts, name = list(task.tasks["tasks"]), task.request.name
    summed = bool(_metrics(found.get(name, {})))
    scores: list[Score] = []
    for whole, leaves in [(name, parts)] if summed else [(part, [part]) for part in parts]:
        metrics = _metrics(found[whole])
        chosen = next((metric for metric in (task.request.metric, *USUAL_METRICS) if metric in metrics), None)
        shots = max(results["n-shot"][leaf] for leaf in leaves)
        questions = sum(results["n-samples"][leaf]["effective"] for leaf in leaves)
        for metric, (value, stderr) in metrics.items():
            scores.append(Score(whole, shots, metric, value, stderr, questions, counts=metric == chosen))
    return scores


def _metrics(values: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """{metric: (value, standard error)}; a filter that changes answers is part of the metric's name."""
    found: dict[str, tuple[float, float | None]] = {}
    for key, value in values.items():
        metric, comma, filter_ = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_}")
        named = metric if filter_ == "none" else f"{metric}, {filter_}"
        found[named] = (float(value), float(stderr) if isinstance(stderr, (int, float)) else None)
    return found
