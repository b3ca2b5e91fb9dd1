"""From typed words to a function of the API and its arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import yaml

from darwinlm.cli.commands import COMMANDS, GROUPS, Command, arguments_of, settings_of
from darwinlm.cli.help import ALWAYS, METAVARS
from darwinlm.config.described import Setting, did_you_mean, listed
from darwinlm.config.reading import converted
from darwinlm.errors import RequestError

if TYPE_CHECKING:
    from darwinlm.show.result import Result

_NEGATIVE = re.compile(r"-\.?\d")
_TRUTH = ("true", "false", "yes", "no")
_ALWAYS = [flags.rpartition("--")[2] for flags in ALWAYS]


@dataclass(frozen=True)
class Request:
    """A command as it was typed."""

    call: Any
    """The function of the API."""
    arguments: dict[str, Any]
    json: bool = False
    verbose: bool = False
    quiet: bool = False

    def run(self) -> Result:
        """Call it."""
        return self.call(**self.arguments)


class _Parser(argparse.ArgumentParser):
    """One that raises what it has to say."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def parser_of(name: str, parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """A parser of the words of a command; `parser` is filled where one is given, else a new one."""
    command = COMMANDS[name]
    parser = parser or _Parser(f"darwinlm {name}", add_help=False, allow_abbrev=False, exit_on_error=False)
    for word in command.words:
        parser.add_argument(f"word_{word}", nargs="?", metavar=METAVARS.get(word, word.upper()))
    for option in command.options.values():
        parser.add_argument(f"--{option.name}", dest=option.name, help=option.text.replace("%", "%%"))
    for flags, text in ALWAYS.items():
        parser.add_argument(*flags.split(", "), action="store_true", help=text)
    return parser


def read(name: str, typed: Sequence[str]) -> Request:
    """The function that is asked for, and its arguments; settings are checked by the function.

    Raises:
        RequestError: the words do not fit; names all that do not, and what may have been meant.
    """
    command = COMMANDS[name]
    try:
        found, extra = parser_of(name).parse_known_intermixed_args(list(_spelt(typed, command)))
    except argparse.ArgumentError as fault:
        flag = fault.argument_name or ""
        kind = f"{flag} needs a value." if "expected one argument" in fault.message else f"{flag} {fault.message}."
        raise RequestError(f"{kind.strip()} See darwinlm help {name}.") from fault
    if extra:
        raise RequestError(*_unknown(extra, name))
    given = {key: value for key, value in vars(found).items() if value is not None}
    always = {flag: given.pop(flag) for flag in _ALWAYS}
    for word in command.words:
        if (value := given.pop(f"word_{word}", None)) is not None and given.setdefault(word, value) != value:
            raise RequestError(f"{word} is given twice: '{value}' and '{given[word]}'.")
    function, arguments, faults = command.function, dict[str, Any](), list[str]()
    for flag, other in command.instead.items():
        if given.get(flag) not in (None, "false"):
            function = other
    taken = arguments_of(function)
    for key, value in given.items():
        if key in taken:
            try:
                arguments[key] = _own(command.own[key], value)
            except RequestError as fault:
                faults += fault.faults
        elif key.split(".")[0] in settings_of(function):
            try:
                _put(arguments, key.split("."), decoded(command.options[key].type, value))
            except yaml.YAMLError:
                faults.append(
                    f"--{key} is '{value}', which cannot be read. See darwinlm help {name} {key.split('.')[0]}."
                )
        elif key not in command.instead:
            chosen = next((flag for flag in command.instead if flag in given), "")
            faults.append(f"--{key} does not go with --{chosen}. See darwinlm help {name}.")
    if faults:
        raise RequestError(*faults)
    return Request(function, arguments, **always)


def _spelt(typed: Sequence[str], command: Command) -> Iterator[str]:
    """Flags with underscores, and switches with their value."""
    words = list(typed)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            yield word
            continue
        flag, equals, value = word.partition("=")
        flag = f"--{flag[2:].replace('-', '_')}"
        option = command.options.get(flag[2:])
        if option and option.type is not bool and not equals and words and _NEGATIVE.match(words[0]):
            equals, value = "=", words.pop(0)
        if option and option.type is bool and not equals:
            value = words.pop(0) if words and words[0].lower() in _TRUTH else "true"
            equals = "="
        yield f"{flag}{equals}{value}"


def decoded(kind: Any, text: str) -> Any:
    """A typed value as YAML would hold it; what allows text is text."""
    inside = get_args(kind)
    if type(None) in inside and text.lower() in ("none", "null", ""):
        return None
    if kind is str or str in inside:
        return text
    value = yaml.safe_load(text) if text.strip() else text
    lists = any(getattr(each, "__origin__", None) is list for each in (kind, *inside))
    if lists and not isinstance(value, list):
        return [yaml.safe_load(part) for part in text.split(",")]
    return value


def _own(option: Setting, text: str) -> Any:
    """The value of a function's own argument."""
    if option.type is str or str in get_args(option.type):
        return text
    try:
        return converted(f"--{option.name}", decoded(option.type, text), option.type)
    except yaml.YAMLError as fault:
        raise RequestError(f"--{option.name} is '{text}', which cannot be read.") from fault


def _put(arguments: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        arguments = arguments.setdefault(part, {})
    arguments[path[-1]] = value


def _unknown(extra: list[str], name: str) -> list[str]:
    """What to say of words that nobody takes."""
    faults, command, after_flag = [], COMMANDS[name], False
    for word in extra:
        if not word.startswith("-"):
            if not after_flag:
                expects = " ".join(METAVARS.get(each, each.upper()) for each in command.words) or "no words"
                flags = [
                    f"--{each}" for each in ("data", "output") if each in command.options and each not in command.words
                ]
                told = f"flags{' such as' * bool(flags)} {' and '.join(flags)}".strip()
                faults.append(f"'{word}' is one word too many: darwinlm {name} takes {expects}, and {told}.")
            after_flag = False
            continue
        flag, equals, _ = word.partition("=")
        after_flag = not equals
        faults.append(_unknown_flag(flag, name))
    return faults


def _unknown_flag(word: str, name: str) -> str:
    flag, options = word.lstrip("-"), COMMANDS[name].options
    if flag in GROUPS and (members := [f"--{each}" for each in options if each.startswith(f"{flag}.")]):
        return f"--{flag} is a group of settings; give one of {listed(members)}."
    near = did_you_mean(flag, [*options, *_ALWAYS], "--")
    if others := [other for other, command in COMMANDS.items() if flag in command.options]:
        return f"--{flag} does not count for darwinlm {name}; it belongs to {listed(others, 'and')}.{near}"
    return f"There is no flag {word}.{near} See darwinlm help {name}."
