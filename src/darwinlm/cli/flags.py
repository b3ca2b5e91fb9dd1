"""From typed words to settings and a command's own flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from darwinlm.cli.commands import Command
from darwinlm.config import PRESETS, RunConfig, merge, preset_values, read_yaml, settings_parser
from darwinlm.errors import RequestError
from darwinlm.runtime.rundir import settled

_FLAG_HELP = {
    "rebuild": "make damaged files of the database again",
    "check": "only check that the files of a run's database are whole",
    "show": "only show the errors of a run's database: a table, and a picture beside its files",
    "restart": "discard the search that lies in the output folder and begin anew",
    "against": "the dense model to compare with: folder or hub id",
    "beside": "further models with commas, given the same text and tasks",
    "apply_chat_template": "put the requests of tasks into the models' chat template, solved examples as turns",
    "output": "folder for the numbers: by default runs/bench (bench), or the checkpoint's run directory (eval)",
    "tasks": "tasks of lm-evaluation-harness: paper, or names with commas such as hellaswag@10,piqa (10 examples, usual)",
    "include_path": "folder with task files of your own, for --tasks",
    "limit": "questions of each task, the first ones; all by default",
    "batch_size": "sequences in a forward pass at the tasks; 8 by default",
    "targets": "several targets of one kind with commas, such as 3B,4B,5B, 40%%,60%% or 4,5,6: a family of nested models",
    "table": "measure every width that a module can have, for --target.speedup: latency.json in the output folder",
    "latency_table": "such a file: its predictions are printed beside what is measured",
    "source": "FILE.gguf, masked checkpoint, or folder of <module>/<level>.pth files",
    "run": "run directory: what a command wrote by --output",
    "configuration": "text file with a line `module: level` for each module of a level database",
    "file": "the recipe, such as recipes/llama2_7b_to_2.7b.yaml",
    "recipe": "predict the steps of this recipe instead; MODEL, where it is given, takes the place of its model",
    "portable": "write a checkpoint with zero stubs for absent modules, too, for engines that need every module",
    "format": "write this format, too: gguf, for llama.cpp",
    "dtype": "of the GGUF file that is written: f32, f16, bf16 or q8_0, by default what the checkpoint is stored in; of the "
    "checkpoint that a GGUF file becomes: f32, f16 or bf16, by default what loses nothing, f32 of a quantized file",
    "methods": "methods with commas, or all, which is the default: uniform, magnitude, llm_pruner, flap, flap_no_bias, "
    "minitron, minitron_depth, random, ziplm, ziplm_kinds, shortgpt, shortened_llama, shortened_llama_taylor, "
    "sliding_cosine, evopress, sheared, sheared_levels, darwinlm_untrained, darwinlm, darwinlm_parameters",
    "levels": "levels with commas, in steps of database.levels; by default the run's target",
    "train_tokens": "tokens of the same post-training for every model, which is then scored again; 0 (default) for none",
    "tokens": "tokens to train on, such as 50M or 10B; short for --train.tokens",
    "teacher": "the dense model to learn from: folder or hub id; short for --train.teacher",
    "lora": "train low-rank adapters and merge them; short for --train.method lora",
    "learning_rate": "AdamW's learning rate in that post-training, without warm-up; 3e-5 by default",
    "keep_models": "write every method's model, as pruned, as a checkpoint, too: RUN/compare/METHOD/levelL_seedS/model",
    "seeds": "runs with different seeds of every method that searches; 1 by default",
}
_POSITIONAL = ("source", "run", "file")
_ONLY_OF = {
    "bench": ("bench",),
    "train": ("train", "recipe", "plan"),
    "plan": ("plan",),
    "sheared": ("compare",),
}
"""Groups of settings that are flags of these commands alone."""
_WITH_VALUE = (
    "recipe",
    "against",
    "beside",
    "output",
    "tasks",
    "include_path",
    "limit",
    "batch_size",
    "format",
    "dtype",
    "configuration",
    "methods",
    "levels",
    "train_tokens",
    "tokens",
    "teacher",
    "learning_rate",
    "seeds",
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
    if flags.get("file") or flags.get("recipe"):  # what is typed goes above the settings of every step
        above = (preset_values(preset) if preset else {}, read_yaml(Path(file)) if file else {}, _given(typed))
        return RunConfig(), {**flags, "typed": merge(*above)}
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
            *(group for group, commands in _ONLY_OF.items() if name not in commands),
        ),
        usage=f"darwinlm {name} {command.usage} [settings]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
    )
    if command.takes_model:
        parser.add_argument("model", nargs="?", help="path or hub id of the model")
    parser.add_argument("--preset", help=f"settings by name: {', '.join(PRESETS)}")
    parser.add_argument("--config", help="YAML file with settings; flags override it")
    for flag in command.flags:
        if flag in _POSITIONAL:
            parser.add_argument(flag, nargs="?", help=_FLAG_HELP[flag])
        elif flag in _WITH_VALUE:
            parser.add_argument(f"--{flag.replace('_', '-')}", help=_FLAG_HELP[flag])
        else:
            parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=_FLAG_HELP[flag])
    return parser


def _given(typed: dict[str, Any]) -> dict[str, Any]:
    """Without what was not typed."""
    given = {key: _given(value) if isinstance(value, dict) else value for key, value in typed.items()}
    return {key: value for key, value in given.items() if value is not None and value != {}}
