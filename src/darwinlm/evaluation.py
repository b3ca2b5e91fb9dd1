"""`darwinlm eval`: perplexity of a checkpoint on any text, its KL to another, and both at tasks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from darwinlm.config import RunConfig
from darwinlm.data.blocks import from_the_beginning
from darwinlm.data.lineage import Lineage
from darwinlm.errors import RequestError
from darwinlm.measure.evaluated import Evaluation
from darwinlm.measure.harness import LoadedTask, load_tasks, score_tasks
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.measure.task_list import read_tasks
from darwinlm.measure.task_scores import TaskComparison
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.models.tokens import require_same_tokens
from darwinlm.models.whole import load_whole
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import RunDirectory


@dataclass(frozen=True)
class Asked:
    """What is asked of an evaluation besides the settings."""

    against: str = ""
    """The dense model; none gives the checkpoint alone."""
    tasks: str = ""
    """`paper`, or names with commas (`measure.task_list`); none for perplexity and KL alone."""
    include_path: str = ""
    """Folder with task files of one's own."""
    limit: int | None = None
    """Questions of each task, the first ones; all by default."""
    batch_size: int = 8
    """Sequences in a forward pass at the tasks."""

    @classmethod
    def typed(cls, against: str, tasks: str, include_path: str, limit: Any, batch_size: Any) -> Asked:
        """From what was typed; empty is the default.

        Raises:
            RequestError: a number is none or too small, or something is given that only tasks need.
        """
        wrong = [
            f"{flag} is '{value}'; it must be a whole number of 1 or more."
            for flag, value in (("--limit", limit), ("--batch-size", batch_size))
            if value and not (str(value).isdecimal() and int(value) >= 1)
        ]
        idle = [
            flag
            for flag, value in (("--include-path", include_path), ("--limit", limit), ("--batch-size", batch_size))
            if value and not tasks
        ]
        if idle:
            wrong.append(f"{' and '.join(idle)} without tasks: add --tasks paper, or names of tasks.")
        if wrong:
            raise RequestError(*wrong)
        return cls(against, tasks, include_path, int(limit) if limit else None, int(batch_size) if batch_size else 8)


def run_evaluation(config: RunConfig, asked: Asked) -> Evaluation:
    """Score a checkpoint, and the one it is compared with, on text and at tasks.

    Without `config.data`, text is needed only where no tasks are asked for or a run's held-out blocks lie there.

    Raises:
        RequestError: a model, a text or a task cannot be had; raised before any long work.
    """
    names = _sources(config, asked.against)
    loaded = load_tasks(read_tasks(asked.tasks), asked.include_path) if asked.tasks else []
    lineage = Lineage(config.model)
    readable = config.data or lineage.runs or not asked.tasks
    qualities = run_eval(config, asked.against) if readable else {}
    own = lineage.scored(config.data) is not None
    text = "Held-out text of the run" if own else f"First blocks of {config.data}" if readable else ""
    return Evaluation(qualities, text, _at_tasks(names, loaded, config, asked) if loaded else None)


def _sources(config: RunConfig, against: str) -> dict[str, ModelSource]:
    if not config.model:
        raise RequestError("No model is given: a folder such as runs/llama/model, or a hub id.")
    named = {**({"dense": against} if against else {}), "model": config.model}
    return {key: ModelSource(name) for key, name in named.items()}


def _at_tasks(
    sources: dict[str, ModelSource], loaded: list[LoadedTask], config: RunConfig, asked: Asked
) -> TaskComparison:
    """Each model in turn, so that only one is in memory."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    scored: dict[str, Any] = {}
    for key, source in sources.items():
        log.info("Tasks: %s", source.name)
        model = load_whole(source, device, dtype)
        scored[key] = score_tasks(loaded, model, source.tokenizer, batch_size=asked.batch_size, limit=asked.limit)
        del model
    settings = {
        "tasks": ",".join(str(task.request) for task in loaded),
        "limit": asked.limit or "none",
        "batch size": asked.batch_size,
        "arithmetic": str(dtype).removeprefix("torch."),
        "lm-evaluation-harness": version("lm_eval"),
    }
    return TaskComparison(
        models={key: source.name for key, source in sources.items()},
        scores={key: scores for key, (scores, _) in scored.items()},
        settings=settings,
        raw={key: raw for key, (_, raw) in scored.items()},
    )


def run_eval(config: RunConfig, against: str = "") -> dict[str, Quality]:
    """Score a checkpoint on text, and the one it is compared with.

    Without `config.data`, or with the data of its run, a checkpoint inside a run directory is scored on that run's
    held-out blocks. Otherwise it is the first `blocks.held_out` blocks of the data that share no text with what its runs
    were calibrated, trained or selected on.

    Args:
        config: model, data, blocks, device and dtype count.
        against: the dense model; none gives perplexity alone.

    Returns:
        By name: `dense` where there is one, and `model`.
    """
    sources = _sources(config, against)
    source = sources["model"]
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    dense, rows = None, None
    if against:
        tokens = require_same_tokens(source, sources["dense"])
        padded = source.shape.vocabulary != sources["dense"].shape.vocabulary
        dense, rows = BlockStream(sources["dense"], device, dtype), tokens if padded else None
    held_out = HeldOut(_tokens(source, config), dense, rows=rows)
    found = {"dense": held_out.dense_quality()} if dense else {}
    return {**found, "model": held_out.quality(BlockStream(source, device, dtype))}


def _tokens(source: ModelSource, config: RunConfig) -> Tensor:
    lineage = Lineage(config.model)
    if (own := lineage.scored(config.data)) is not None:
        return own.blocks
    if not config.data:
        raise RequestError("No text is given: --data with a file, folder, hub data set or stdlib.")
    if lineage.trained_on:
        known = " and ".join(f"'{data}'" for data in lineage.trained_on)
        log.warning(
            "The checkpoint was trained on %s: whether '%s' shares text with that is not known.", known, config.data
        )
    source.require_context(config.blocks.sequence_length)
    return from_the_beginning(config.data, config.blocks, source.tokenizer, lineage).blocks


def eval_folder(config: RunConfig, output: str) -> Path | None:
    """Where `eval.json` and `eval.md` go: what is asked for, else the checkpoint's run directory; None where neither is."""
    if output:
        return Path(output).expanduser()
    run = RunDirectory(Path(config.model).expanduser().resolve().parent)
    return run.path if run.config.exists() else None
