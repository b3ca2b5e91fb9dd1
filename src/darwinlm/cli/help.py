"""Help pages, made from the same signatures as the parser."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import Literal, get_args, get_origin

from darwinlm.cli.commands import COMMANDS, KINDS_OF_COMMANDS
from darwinlm.config.described import Setting, did_you_mean, in_words
from darwinlm.errors import RequestError

METAVARS = {"output": "RUN", "source": "SOURCE"}
BASIC = {
    *("data", "output", "preset", "config", "device", "seed"),
    *("target.parameters", "target.speedup", "target.memory", "target.level"),
    *("blocks.sequence_length", "search.generations", "refit.tokens"),
    *("train.learning_rate", "train.batch_tokens"),
    *("bench.batch_sizes", "bench.context_lengths", "bench.threads", "plan.device", "plan.devices"),
}
"""The settings that a help page shows at first: those that matter."""
EXAMPLES = {
    "prune": ("Qwen/Qwen3-0.6B --data fineweb-edu --output runs/qwen3",),
    "train": ("runs/qwen3/model --data fineweb-edu --tokens 50M", "runs/qwen3/model --data notes/ --tokens 20M --lora"),
    "recipe": ("recipes/demo_gradual.yaml",),
    "plan": ("Qwen/Qwen3-0.6B --target.parameters 60%", "Qwen/Qwen3-8B --plan.device H100"),
    "eval": ("runs/qwen3/model --against Qwen/Qwen3-0.6B --tasks paper",),
    "bench": ("runs/qwen3/model --against Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B --table"),
    "compare": ("Qwen/Qwen3-0.6B --data fineweb-edu --output runs/compared",),
    "report": ("runs/qwen3",),
    "export": ("runs/qwen3 --format gguf --dtype q8_0",),
    "import": ("model.Q4_K_M.gguf imported", "masked-llama --output imported"),
    "database": ("Qwen/Qwen3-0.6B --data fineweb-edu --output runs/qwen3",),
    "search": ("runs/qwen3 --target.parameters 50%",),
    "refit": ("runs/qwen3",),
    "schema": ("> darwinlm.schema.json",),
}
"""What is typed after the name of a command."""
_FIRST = ("data", "output")
_COLUMN = 28
ALWAYS = {
    "--json": "print the result as JSON on standard output, and nothing else there",
    "-q, --quiet": "say only what is wrong, and the result",
    "-v, --verbose": "say more: what libraries say, and where an error came from",
}
"""Flags that every command takes."""


def overview() -> str:
    """What `darwinlm --help` prints."""
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    summaries["completion"] = "Print a completion script: darwinlm completion bash, zsh or tcsh"
    lines = ["DarwinLM: really smaller and faster language models by training-aware evolutionary pruning.", ""]
    for title, names in KINDS_OF_COMMANDS.items():
        lines += [f"{title}:", *(_entry(name, summaries[name], 12) for name in names), ""]
    lines.append("darwinlm help COMMAND lists its flags. Begin with: darwinlm demo")
    return "\n".join(lines)


def page(name: str, what: str = "") -> str:
    """The help of a command.

    Args:
        name: of the command.
        what: nothing for what matters, `all`, or the name of a group of settings.

    Raises:
        RequestError: there is no such group.
    """
    command = COMMANDS[name]
    groups = command.groups
    if what not in ("", "all", *groups):
        near = did_you_mean(what, groups)
        raise RequestError(
            f"darwinlm {name} has no group of settings '{what}'; it has {', '.join(groups) or 'none'}.{near}"
        )
    words = "".join(f" [{METAVARS.get(word, word.upper())}]" for word in command.words)
    lines = [f"darwinlm {name}{words} [flags]", "", *_wrapped(f"{command.summary}.", 0), ""]
    lines += [*(f"  $ darwinlm {name} {example}" for example in EXAMPLES.get(name, ())), ""] if not what else []
    if what in groups:
        return "\n".join([*lines, *_entries(each for each in command.settings.values() if _group(each) == what)])
    lines += [_entry(METAVARS.get(word, word.upper()), _text(command.own[word])) for word in command.words]
    own = [option for option in command.own.values() if option.name not in command.words]
    plain = [option for option in command.settings.values() if not _group(option)]
    inside = [option for option in command.settings.values() if _group(option)]
    lines += _entries(option for option in plain if option.name in _FIRST)
    lines += _entries(option for option in own if option.type is not bool)
    lines += _entries(option for option in inside if option.name in BASIC and what != "all")
    lines += _entries(option for option in own if option.type is bool)
    lines += _entries(
        option for option in plain if option.name not in _FIRST and (what == "all" or option.name in BASIC)
    )
    if what == "all":
        for group in groups:
            lines += ["", f"{group}:", *_entries(option for option in inside if _group(option) == group)]
        lines += [""]
    lines += [_entry(*each) for each in ALWAYS.items()]
    if hidden := len([option for option in command.settings if option not in BASIC]) if not what else 0:
        lines += ["", *_wrapped(f"{hidden} more: --help-all, or by group: --help {', '.join(groups)}", 0)]
    return "\n".join(lines)


def _group(option: Setting) -> str:
    return option.name.rpartition(".")[0]


def _entries(options: Iterable[Setting]) -> list[str]:
    return [_entry(f"--{option.name}", _text(option)) for option in options]


def _text(option: Setting) -> str:
    """What an option says, its type in words, and its default."""
    kinds = (option.type, *get_args(option.type))
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    kind = "" if str in kinds or (option.type is bool and not option.default) else in_words(option.type)
    kind = {"a number or auto": kind}.get(kind, ", ".join(choices) or kind.replace("a number of tokens, such", "such"))
    default = "" if option.default in (None, "") or option.default is False else f"default {option.default}"
    notes = "; ".join(filter(None, (kind, default)))
    text = f"{option.text[:1].upper()}{option.text[1:].rstrip('.')}"
    return f"{text} ({notes})" if notes else text


def _entry(name: str, text: str, column: int = _COLUMN) -> str:
    first, *rest = _wrapped(text, column) or [""]
    head = f"  {name}"
    if len(head) + 2 > column:
        return "\n".join([head, " " * column + first.lstrip(), *rest])
    return "\n".join([head.ljust(column) + first.lstrip(), *rest])


def _wrapped(text: str, indent: int) -> list[str]:
    width = min(100, max(60, shutil.get_terminal_size().columns - 1))
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
    )
