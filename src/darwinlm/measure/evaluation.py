"""`darwinlm eval`: perplexity of checkpoints on any text, their KL to a dense one, and all at tasks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from darwinlm.config import RunConfig
from darwinlm.data.blocks import from_the_beginning
from darwinlm.data.lineage import Lineage
from darwinlm.data.windows import shared
from darwinlm.errors import RequestError
from darwinlm.measure.answers import Answers, Kept, differences, results_of, scores
from darwinlm.measure.harness import LoadedTask, load_tasks, write_out
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.measure.tables import Table, quality_table, task_tables
from darwinlm.measure.task_list import read_tasks
from darwinlm.measure.task_scores import TaskComparison
from darwinlm.models.blocks import BlockStream
from darwinlm.models.check import check_streamed
from darwinlm.models.source import ModelSource
from darwinlm.models.tokens import require_same_chat, require_same_tokens, tokens_digest
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.files import write_json, write_text
from darwinlm.runtime.progress import log


@dataclass(frozen=True)
class Asked:
    """What is asked of an evaluation besides the settings.

    Raises:
        RequestError: a number is too small, or something is given that only tasks need.
    """

    against: str = ""
    """The dense model; none gives the checkpoint alone."""
    beside: tuple[str, ...] = ()
    """Further models that get the same text and tasks."""
    tasks: str = ""
    """`paper`, or names with commas (`measure.task_list`); none for perplexity and KL alone."""
    include_path: str = ""
    """Folder with task files of one's own."""
    limit: int | None = None
    """Questions of each task, the first ones; all by default."""
    batch_size: int | None = None
    """Sequences in a forward pass at the tasks; 8 by default."""
    apply_chat_template: bool = False
    """Put the requests of tasks into the models' chat template, solved examples as turns."""

    def __post_init__(self) -> None:
        numbers, flags = ("limit", "batch_size"), ("include_path", "limit", "batch_size", "apply_chat_template")
        wrong = [
            f"--{flag} is {value}; it must be a whole number of 1 or more."
            for flag in numbers
            if (value := getattr(self, flag)) is not None and value < 1
        ]
        if (idle := [f"--{flag}" for flag in flags if getattr(self, flag)]) and not self.tasks:
            wrong.append(f"{' and '.join(idle)} without tasks: add --tasks paper, or names of tasks.")
        if wrong:
            raise RequestError(*wrong)


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    qualities: dict[str, Quality]
    """`dense` where there is one, and `model`; empty where there was no text to read."""
    text: str
    """Which text that was."""
    tasks: TaskComparison | None

    def save(self, folder: Path) -> None:
        """Write `eval.json` and `eval.md`."""
        tasks = self.tasks.as_dict() if self.tasks else None
        write_json(folder / "eval.json", {"text": self.text, "qualities": self._rows, "tasks": tasks})
        models = [f"{label}: `{name}`  " for label, name in (self.tasks.models if self.tasks else {}).items()]
        parts = [*(["\n".join(models) + "\n"] if models else []), *(table.markdown() for table in self.as_tables())]
        write_text(folder / "eval.md", "\n".join(parts))

    def as_tables(self) -> list[Table]:
        """Text and tasks, as far as there are any."""
        found = [quality_table(self._rows, self.text)] if self.qualities else []
        return found + (task_tables(self.tasks) if self.tasks else [])

    @property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return {name: dataclasses.asdict(quality) for name, quality in self.qualities.items()}


def run_evaluation(config: RunConfig, asked: Asked, folder: Path | None = None) -> Evaluation:
    """Score checkpoints on text and at tasks: all on the same blocks, all asked the same requests.

    The text is that of `config.blocks.held_out_data`, else of `config.data`; without both it is needed only where no tasks are
    asked for or a run's held-out blocks lie there.

    Args:
        config: model, data, blocks, device and dtype count.
        asked: the rest.
        folder: where every result is kept as soon as it is there, so that none is made twice; None keeps nothing.

    Raises:
        RequestError: a model, a text or a task cannot be had; raised before any long work.
    """
    if config.blocks.held_out_data:
        config = dataclasses.replace(config, data=config.blocks.held_out_data)
    sources = _sources(config, asked)
    loaded = load_tasks(read_tasks(asked.tasks), asked.include_path) if asked.tasks else []
    if asked.apply_chat_template:
        require_same_chat(list(sources.values()))
    lineage = Lineage(config.model, *asked.beside)
    kept = Kept(folder / "eval" if folder else None)
    if loaded and not folder:
        log.info("Results are printed alone, and a killed evaluation begins anew: --output FOLDER keeps them.")
    readable = config.data or lineage.runs or not asked.tasks
    qualities = _on_text(sources, config, lineage, kept) if readable else {}
    own = lineage.scored(config.data) is not None
    text = "Held-out text of the run" if own else f"First blocks of {config.data}" if readable else ""
    return Evaluation(qualities, text, _at_tasks(sources, loaded, config, asked, kept) if loaded else None)


def _sources(config: RunConfig, asked: Asked) -> dict[str, ModelSource]:
    """By what tables call them."""
    named = {**({"dense": asked.against} if asked.against else {}), "model": config.model}
    taken = {*named, *named.values()}
    for name in asked.beside:
        if name in taken:
            raise RequestError(f"--beside names '{name}', which is among the models already. Leave it out.")
        taken.add(name)
        named[name] = name
    sources = {label: ModelSource(name, packed=True) for label, name in named.items()}
    for source in sources.values():
        check_streamed(source)
    return sources


def _at_tasks(
    sources: dict[str, ModelSource], loaded: list[LoadedTask], config: RunConfig, asked: Asked, kept: Kept
) -> TaskComparison:
    """Each model in turn, so that only one is in memory; one whose answers are all known is not loaded."""
    from darwinlm.measure.answering import Asking, Encodings, chat_of  # imports the harness, which may not be installed

    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    chat = chat_of(next(iter(sources.values())).tokenizer) if asked.apply_chat_template else None
    requests = [{name: write_out(part, asked.limit, chat) for name, part in task.parts.items()} for task in loaded]
    known, size = dict[str, Encodings](), asked.batch_size or 8
    answered: dict[str, list[dict[str, Answers]]] = {}
    for key, source in sources.items():
        log.info("Tasks: %s", source.name)
        encodings = known.setdefault(tokens_digest(source.tokenizer), {})
        asking = Asking(source, device, dtype, size, asked.limit, asked.apply_chat_template, encodings)
        answered[key] = [asking.all_of(parts, task.parts, kept) for task, parts in zip(loaded, requests)]
    first = next(iter(answered.values()))
    settings = {
        "tasks": ",".join(str(task.request) for task in loaded),
        "limit": asked.limit or "none",
        "chat template": "applied" if asked.apply_chat_template else "none",
        "batch size": size,
        "arithmetic": str(dtype).removeprefix("torch."),
        "lm-evaluation-harness": version("lm_eval"),
    }

    def gathered(of: Callable[..., list[Any]], *models: list[dict[str, Answers]]) -> list[Any]:
        return [row for task, *answers in zip(loaded, *models) for row in of(task, *answers)]

    return TaskComparison(
        models={key: source.name for key, source in sources.items()},
        scores={key: gathered(scores, answers) for key, answers in answered.items()},
        settings=settings,
        raw={
            key: {str(task.request): results_of(task, one) for task, one in zip(loaded, answers)}
            for key, answers in answered.items()
        },
        differences={key: gathered(differences, one, first) for key, one in answered.items() if one is not first},
    )


def _on_text(sources: dict[str, ModelSource], config: RunConfig, lineage: Lineage, kept: Kept) -> dict[str, Quality]:
    """Perplexity of every model, and its KL to the dense one where there is one.

    Without `config.data`, or with the data of its run, a checkpoint inside a run directory is scored on that run's
    held-out blocks. Otherwise it is the first `blocks.held_out` blocks of the data that share no text with what the models'
    runs were calibrated, trained or selected on.
    """
    source, against = sources["model"], sources.get("dense")
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    tokens = {key: require_same_tokens(source, other) for key, other in sources.items() if other is not source}
    blocks = _tokens(source, config, lineage)
    sizes = {each.shape.vocabulary for each in sources.values()}
    rows = min(tokens.values()) if against and len(sizes) > 1 else None
    made_from = {"blocks": hashlib.sha256(blocks.numpy().tobytes()).hexdigest(), "dtype": str(dtype), "rows": rows}
    made_from |= {"device": device.type, "dense": against.digest if against else None}

    @functools.cache
    def held_out() -> HeldOut:
        return HeldOut(blocks, BlockStream(against, device, dtype) if against else None, rows=rows)

    found: dict[str, Quality] = {}
    for key, each in sources.items():
        identity = {**made_from, "model": each.digest}
        if (result := kept.find("text", identity)) is None:
            log.info("Text: %s", each.name)
            one = held_out()
            quality = one.dense_quality() if each is against else one.quality(BlockStream(each, device, dtype))
            kept.keep("text", identity, quality)
            found[key] = quality
        else:
            found[key] = Quality(**result)
    return found


def _tokens(source: ModelSource, config: RunConfig, lineage: Lineage) -> Tensor:
    if (own := lineage.scored(config.data)) is not None:
        if shared(own.blocks, lineage.fitted_by_others).any():
            raise RequestError(
                f"The held-out text of '{config.model}' is what another model's run was fitted to. Give other text: --data FILE."
            )
        return own.blocks
    if not config.data:
        raise RequestError("No text is given: --data with a file, folder, hub data set or stdlib.")
    if lineage.trained_on:
        known = " and ".join(f"'{data}'" for data in lineage.trained_on)
        log.warning(
            "The checkpoint was trained on %s: whether '%s' shares text with that is not known.", known, config.data
        )
    source.require_context(config.blocks.sequence_length)
    return source.begun(from_the_beginning(config.data, config.blocks, source.tokenizer, lineage).blocks)
