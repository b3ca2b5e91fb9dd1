"""The table of commands: what each is called with, and which settings it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from darwinlm.cli import calls
from darwinlm.config import RunConfig


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    summary: str
    usage: str
    call: Callable[[RunConfig, dict[str, Any]], None]
    takes_model: bool = True
    flags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    default_preset: str | None = None


_RUN_FLAGS = "--data DATA --output RUN"
COMMANDS = {
    "prune": Command(
        "all of it: database, search, export, evaluation",
        f"MODEL {_RUN_FLAGS} [--targets 3B,4B,5B]",
        calls.prune,
        flags=("rebuild", "restart", "targets"),
    ),
    "database": Command(
        "second-order levels of every module", f"MODEL {_RUN_FLAGS}", calls.database, flags=("rebuild", "check", "show")
    ),
    "search": Command(
        "evolution over levels, training-aware", "--output RUN", calls.search, takes_model=False, flags=("restart",)
    ),
    "refit": Command(
        "output matrices of the found model, refitted on its own inputs; `prune` and `export` do it, too",
        "--output RUN [--refit.tokens N]",
        calls.refit,
        takes_model=False,
    ),
    "export": Command(
        "a really smaller Hugging Face checkpoint, and other forms of it",
        "--output RUN | CHECKPOINT [--portable] [--format gguf [--dtype f16]]",
        calls.export,
        flags=("portable", "format", "dtype"),
        without=("dtype",),
    ),
    "import": Command(
        "a GGUF file as a checkpoint; a masked model, or the authors' level database, as a really smaller one",
        "SOURCE --output FOLDER [--dtype bf16] [--model DENSE --configuration FILE]",
        calls.import_,
        takes_model=False,
        flags=("source", "configuration", "dtype"),
        without=("data", "seed", "device", "dtype", "blocks", "database", "target", "search"),
    ),
    "train": Command(
        "post-training of a checkpoint: cross entropy, distillation, adapters",
        "CHECKPOINT --data DATA --tokens N [--teacher MODEL] [--lora] [--output FOLDER]",
        calls.train,
        flags=("tokens", "teacher", "lora"),
        without=("database", "target", "search", "bench"),
    ),
    "eval": Command(
        "perplexity of a checkpoint, its KL to the dense model, and both at tasks of lm-evaluation-harness",
        "CHECKPOINT [--against MODEL] [--beside MODEL,...] [--data DATA] [--tasks paper|NAME@SHOTS,...]",
        calls.evaluate,
        flags=("against", "beside", "tasks", "include_path", "limit", "batch_size", "apply_chat_template", "output"),
        without=("output", "database", "target", "search"),
    ),
    "bench": Command(
        "speed and memory of a checkpoint or .gguf file, beside the dense one's, in turn",
        "CHECKPOINT [--against MODEL [--latency-table FILE]] | MODEL --table  [--output FOLDER]",
        calls.bench,
        flags=("against", "output", "table", "latency_table"),
        without=("data", "output", "blocks", "target", "search"),
    ),
    "compare": Command(
        "every method of the paper's comparisons, on your model, at the same sizes",
        f"MODEL {_RUN_FLAGS} [--methods all] [--levels 2,4,6] [--train-tokens N]",
        calls.compare,
        flags=("methods", "levels", "train_tokens", "learning_rate", "seeds", "keep_models"),
        without=("target",),
    ),
    "report": Command(
        "one HTML file with tables and pictures of a run, finished or not",
        "RUN",
        calls.report,
        takes_model=False,
        flags=("run",),
        without=tuple(field.name for field in fields(RunConfig)),
    ),
    "recipe": Command(
        "an experiment of several steps, such as prune, train, prune further, train",
        "FILE [--model MODEL] [--data DATA] [--output FOLDER]",
        calls.recipe,
        takes_model=False,
        flags=("file",),
        without=("target",),
    ),
    "plan": Command(
        "sizes, disk, memory and tokens, from the configuration alone; hours of a recipe",
        "MODEL | [MODEL] --recipe FILE",
        calls.plan,
        flags=("recipe",),
        without=("data", "output"),
    ),
    "demo": Command(
        "prune the embedded model, minutes on a laptop CPU",
        "[--output RUN]",
        calls.demo,
        takes_model=False,
        without=("model",),
        default_preset="demo",
    ),
}
