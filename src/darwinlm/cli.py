"""The command line: reads settings, calls one function, prints a table. No logic of its own."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from darwinlm.config import PRESETS, RunConfig, settings_parser
from darwinlm.errors import RequestError
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import show_log
from darwinlm.runtime.rundir import settled

console = Console(width=None if sys.stdout.isatty() else 110)


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


def _prune(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.pipeline import run_prune

    summary = run_prune(config, rebuild=flags["rebuild"], restart=flags["restart"])
    if ranks.is_first():
        console.print(tables.summary(summary))
        _next(f"darwinlm eval {config.output}/model --against {config.model} --data OTHER_TEXT")


def _database(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.pipeline import check_database, run_database

    if flags["check"] or flags["show"]:
        database, picture = check_database(config, draw=bool(flags["show"]))
        console.print(f"All {len(database.modules)} files of '{database.folder}' are whole.")
        if picture:
            console.print(tables.database(database))
            console.print(f"The picture lies in {picture}")
        return
    console.print(tables.database(run_database(config, rebuild=flags["rebuild"])))
    _next(f"darwinlm search --output {config.output} --target.level {config.target.level:g}")


def _search(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.pipeline import run_search

    console.print(tables.genome(run_search(config, restart=flags["restart"])))
    _next(f"darwinlm export --output {config.output}")


def _export(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.export.forms import Wanted
    from darwinlm.pipeline import run_export

    wanted = Wanted(bool(flags["portable"]), flags["format"] or "", flags["dtype"] or "")
    if forms := run_export(config, wanted):
        for line in tables.forms(forms):
            console.print(line)
        dense = config.model if config.output else "MODEL"
        _next(f"darwinlm eval {forms[0].path} --against {dense}")


def _import(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.foreign.masked import import_model

    imported = import_model(
        flags["source"] or "", config.output, model=config.model, configuration=flags["configuration"] or ""
    )
    console.print(tables.imported(imported))
    _next(f"darwinlm eval {imported.folder} --against MODEL --data TEXT")


def _eval(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.evaluation import run_eval

    title = f"First blocks of {config.data}" if config.data else "Held-out text of the run"
    console.print(tables.qualities(run_eval(config, flags["against"] or ""), title))


def _plan(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.planning import make_plan

    for table in tables.plan(make_plan(config)):
        console.print(table)


def _bench(config: RunConfig, flags: dict[str, Any]) -> None:
    from pathlib import Path

    from darwinlm import tables
    from darwinlm.measure.bench import run_bench, save_bench

    models = [flags["against"], config.model] if flags["against"] else [config.model]
    result = run_bench(models, config)
    for table in tables.bench(result):
        console.print(table, highlight=False)
    numbers, picture = save_bench(result, Path(flags["output"] or "runs/bench").expanduser())
    console.print(f"The numbers lie in {numbers}, their picture in {picture}.", highlight=False, soft_wrap=True)


def _compare(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.comparison import asked, run_compare

    given = {name: value for name, value in flags.items() if value is not None}
    comparison, folder = run_compare(config, asked(config, **given))
    for table in tables.comparison(comparison):
        console.print(table, highlight=False)
    console.print(f"Tables, numbers and pictures lie in {folder}.", highlight=False, soft_wrap=True)


def _demo(config: RunConfig, flags: dict[str, Any]) -> None:
    from darwinlm import tables
    from darwinlm.demonstration import run_demo

    for table in tables.demo(run_demo(config)):
        console.print(table)
    _next(f"darwinlm prune MODEL --data DATA --preset quick --output runs/mine   (this run lies in {config.output})")


_RUN_FLAGS = "--data DATA --output RUN"
COMMANDS = {
    "prune": Command(
        "all of it: database, search, export, evaluation", f"MODEL {_RUN_FLAGS}", _prune, flags=("rebuild", "restart")
    ),
    "database": Command(
        "second-order levels of every module", f"MODEL {_RUN_FLAGS}", _database, flags=("rebuild", "check", "show")
    ),
    "search": Command(
        "evolution over levels, training-aware", "--output RUN", _search, takes_model=False, flags=("restart",)
    ),
    "export": Command(
        "a really smaller Hugging Face checkpoint, and other forms of it",
        "--output RUN | CHECKPOINT [--portable] [--format gguf [--dtype f16]]",
        _export,
        flags=("portable", "format", "dtype"),
        without=("dtype",),
    ),
    "import": Command(
        "a masked model, or the authors' level database, as a really smaller checkpoint",
        "SOURCE --output FOLDER [--model DENSE --configuration FILE]",
        _import,
        takes_model=False,
        flags=("source", "configuration"),
        without=("data", "seed", "device", "dtype", "trust_remote_code", "blocks", "database", "target", "search"),
    ),
    "eval": Command(
        "perplexity of a checkpoint, and its KL to the dense model",
        "CHECKPOINT [--against MODEL] [--data DATA]",
        _eval,
        flags=("against",),
        without=("output", "database", "target", "search"),
    ),
    "bench": Command(
        "speed and memory of a checkpoint or .gguf file, beside the dense one's, in turn",
        "CHECKPOINT [--against MODEL] [--output FOLDER]",
        _bench,
        flags=("against", "output"),
        without=("data", "output", "blocks", "database", "target", "search"),
    ),
    "compare": Command(
        "every method of the paper's comparisons, on your model, at the same sizes",
        f"MODEL {_RUN_FLAGS} [--methods all] [--levels 2,4,6] [--train-tokens N]",
        _compare,
        flags=("methods", "levels", "train_tokens", "learning_rate"),
        without=("target",),
    ),
    "plan": Command(
        "sizes, disk, memory and tokens, from the configuration alone", "MODEL", _plan, without=("data", "output")
    ),
    "demo": Command(
        "prune the embedded model, minutes on a laptop CPU",
        "[--output RUN]",
        _demo,
        takes_model=False,
        without=("model",),
        default_preset="demo",
    ),
}
_FLAG_HELP = {
    "rebuild": "make damaged files of the database again",
    "check": "only check that the files of a run's database are whole",
    "show": "only show the errors of a run's database: a table, and a picture beside its files",
    "restart": "discard the search that lies in the output folder and begin anew",
    "against": "the dense model to compare with: folder or hub id",
    "output": "folder for bench.json and bench.png; runs/bench by default",
    "source": "masked checkpoint, or folder of <module>/<level>.pth files",
    "configuration": "text file with a line `module: level` for each module of a level database",
    "portable": "write a checkpoint with zero stubs for absent modules, too, for engines that need every module",
    "format": "write this format, too: gguf, for llama.cpp",
    "dtype": "of the GGUF file: f32, f16, bf16 or q8_0; by default what the checkpoint is stored in",
    "methods": "methods with commas, or all, which is the default",
    "levels": "levels with commas, in steps of database.levels; by default the run's target",
    "train_tokens": "tokens of the same post-training for every model, which is then scored again; 0 (default) for none",
    "learning_rate": "AdamW's learning rate in that post-training; 1e-4 by default",
}
_WITH_VALUE = (
    "against",
    "output",
    "format",
    "dtype",
    "configuration",
    "methods",
    "levels",
    "train_tokens",
    "learning_rate",
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `darwinlm`; exits with 0 (done), 2 (the request is wrong) or 1 (anything else)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        console.print(overview(), highlight=False)
        return
    if arguments[0] == "--version":
        from darwinlm import __version__

        console.print(f"darwinlm {__version__}", highlight=False)
        return
    try:
        command = _command(arguments[0])
        config, flags = read_settings(arguments[0], command, arguments[1:])
        ranks.join()
        show_log(speak=ranks.is_first())
        console.quiet = not ranks.is_first()
        _quiet_libraries()
        command.call(config, flags)
    except RequestError as fault:
        for message in fault.faults:
            print(f"darwinlm: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("darwinlm: stopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    finally:
        ranks.leave()


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise RequestError(
            f"There is no command '{name}'. The commands are: {', '.join(COMMANDS)}. See darwinlm --help."
        )
    return COMMANDS[name]


def overview() -> str:
    """What `darwinlm --help` prints."""
    lines = [f"  darwinlm {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "DarwinLM: really smaller and faster language models by training-aware evolutionary pruning.",
            "",
            *lines,
            "",
            "darwinlm COMMAND --help lists the settings. Begin with: darwinlm demo",
        ]
    )


def read_settings(name: str, command: Command, arguments: list[str]) -> tuple[RunConfig, dict[str, Any]]:
    """The settings and the command's own flags.

    Raises:
        RequestError: the arguments do not fit.
    """
    parser = _parser(name, command)
    try:
        typed = parser.parse_args(arguments, defaults=False).as_dict()
    except ArgumentError as fault:
        raise RequestError(f"{' '.join(str(fault).split())} See darwinlm {name} --help.") from fault
    flags = {flag: typed.pop(flag, None) for flag in command.flags}
    preset, file = typed.pop("preset", None), typed.pop("config", None)
    if name == "demo":
        typed.setdefault("output", "runs/demo")
    return settled(
        _given(typed), preset=preset, file=file, default=command.default_preset, without=command.without
    ), flags


def _parser(name: str, command: Command) -> ArgumentParser:
    parser = settings_parser(
        without=(
            *command.without,
            *(["model"] if command.takes_model else []),
            *([] if name == "bench" else ["bench"]),
        ),
        usage=f"darwinlm {name} {command.usage} [settings]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
    )
    if command.takes_model:
        parser.add_argument("model", nargs="?", help="path or hub id of the model")
    parser.add_argument("--preset", help=f"settings by name: {', '.join(PRESETS)}")
    parser.add_argument("--config", help="YAML file with settings; flags override it")
    for flag in command.flags:
        if flag == "source":
            parser.add_argument("source", nargs="?", help=_FLAG_HELP[flag])
        elif flag in _WITH_VALUE:
            parser.add_argument(f"--{flag.replace('_', '-')}", help=_FLAG_HELP[flag])
        else:
            parser.add_argument(f"--{flag}", action="store_true", help=_FLAG_HELP[flag])
    return parser


def _given(typed: dict[str, Any]) -> dict[str, Any]:
    """Without what was not typed."""
    given = {key: _given(value) if isinstance(value, dict) else value for key, value in typed.items()}
    return {key: value for key, value in given.items() if value is not None and value != {}}


def _next(command: str) -> None:
    console.print(f"Next: {command}", highlight=False, soft_wrap=True)


def _quiet_libraries() -> None:
    """Progress bars and advice of libraries would tear ours apart; their warnings go to the log file."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
