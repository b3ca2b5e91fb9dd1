"""Completion scripts for shells, made by shtab from the parsers of all commands."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

import shtab

from darwinlm.cli.commands import COMMANDS
from darwinlm.cli.parsing import parser_of
from darwinlm.config import PRESETS

_PATHS = ("model", "source", "file", "run", "against", "teacher", "output", "data", "config", "latency_table", "recipe")


def script(shell: str) -> str:
    """What `darwinlm completion SHELL` prints."""
    parser = argparse.ArgumentParser("darwinlm")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary.replace("%", "%%"))
        parser_of(name, own)
        for action in own._actions:
            _complete(action, command.options)
    return shtab.complete(parser, shell)


def _complete(action: Any, options: dict[str, Any]) -> None:
    """Say what the values of an option are: names that there are, or files."""
    name = action.dest.removeprefix("word_")
    kinds = (kind := options[name].type, *get_args(kind)) if name in options else ()
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices or name == "preset":
        action.choices = choices or PRESETS
    elif name in _PATHS:
        action.complete = shtab.FILE
