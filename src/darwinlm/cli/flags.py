"""From typed words to settings and a command's own flags."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from darwinlm.cli.commands import Command
from darwinlm.config import PRESETS, RunConfig, settings_parser
from darwinlm.errors import RequestError
from darwinlm.runtime.rundir import settled

_FLAG_HELP = {
    "rebuild": "make damaged files of the database again",
    "check": "only check that the files of a run's database are whole",
    "show": "only show the errors of a run's database: a table, and a picture beside its files",
    "restart": "discard the search that lies in the output folder and begin anew",
    "against": "the dense model to compare with: folder or hub id",
    "output": "folder for bench.json and bench.png; runs/bench by default",
    "targets": "several targets of one kind with commas, such as 3B,4B,5B, 40%%,60%% or 4,5,6: a family of nested models",
    "table": "measure every width that a module can have, for --target.speedup: latency.json in the output folder",
    "latency_table": "such a file: its predictions are printed beside what is measured",
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
    "latency_table",
    "targets",
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
    without = (*command.without, "target") if flags.get("targets") else command.without  # each is checked by itself
    config = settled(_given(typed), preset=preset, file=file, default=command.default_preset, without=without)
    return config, flags


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
