"""Tasks of lm-evaluation-harness, found, loaded and written out as requests before any model is loaded."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darwinlm.errors import RequestError, first_line
from darwinlm.measure.task_list import TaskRequest
from darwinlm.runtime.progress import progress


@dataclass(frozen=True)
class LoadedTask:
    """A task with its data."""

    request: TaskRequest
    parts: dict[str, Any]
    """The harness's own objects: of a group or tag all that are in it, else the task itself."""
    groups: dict[str, Any]
    """Those that sum parts up, innermost groups among them."""


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
    names = [request.name for request in requests]
    manager = _manager(names, folder)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise RequestError(*(_unknown(name, manager.all_tasks) for name in unknown))
    with as_its_command_line():
        return [_load(request, manager) for request in requests]


def _manager(names: list[str], folder: Path | None) -> Any:
    """The harness's index of tasks; that of all it ships is slow to make, and left out where one's own folder will do."""
    from lm_eval.tasks import TaskManager  # slow to import, and needed here alone

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # groups may name tasks from elsewhere
            return own
    with progress("Index of lm-evaluation-harness's tasks", total=1) as advance:
        every = TaskManager(include_path=str(folder) if folder else None)
        advance("")
    return every


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
        lost = isinstance(fault, FileNotFoundError)
        hint = (
            f"Paths in a task file count from the working folder, here '{Path.cwd()}': type the command where they fit"
            if lost
            else ""
        )
        raise RequestError(
            f"The task '{request.name}' cannot be loaded ({type(fault).__name__}: {first_line(fault)}). "
            f"{hint or 'Check its data set and the connection'}, or leave it out."
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
    return LoadedTask(request, loaded["tasks"], {name: g for name, g in loaded["groups"].items() if g.has_aggregation})


@contextmanager
def as_its_command_line() -> Iterator[None]:
    """With the seeds of the harness's command line, which it takes from global generators, and without its bars."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from tqdm import tqdm

    bar: Any = tqdm
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    shown = bar.__init__
    bar.__init__ = partialmethod(shown, disable=True)
    try:
        yield
    finally:
        bar.__init__ = shown


def write_out(task: Any, limit: int | None, chat: Callable[..., str] | None) -> str:
    """Make the requests of one of `LoadedTask.parts`; returns what tells others apart.

    Args:
        task: the harness's own object.
        limit: questions that are asked, the first ones; None for all.
        chat: the harness's function that puts turns into a chat template; None asks plain text.
    """
    with as_its_command_line():
        begin(task)
        task.build_all_requests(
            limit=limit,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            chat_template=chat,
        )
    return digest(task)


def begin(task: Any) -> None:
    """Draw solved examples as the harness's command line does."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def digest(task: Any) -> str:
    """Of all requests as they are asked, and of how they are judged; not of where their data lie."""
    plain = {
        key: value for key, value in task.dump_config().items() if isinstance(value, (str, int, float, list, dict))
    }
    judged = {key: value for key, value in plain.items() if not key.startswith("dataset_")}
    asked = [[request.request_type, request.args, request.doc] for request in task.instances]
    text = json.dumps([str(task.VERSION), judged, asked], sort_keys=True, default=_named)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _named(value: Any) -> str:
    """What is no plain data, such as a function of a task file."""
    return getattr(value, "__name__", type(value).__name__)
