"""The commands, and what each takes: read off the functions of the API."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args

from typing_extensions import Unpack

import darwinlm
from darwinlm import keywords
from darwinlm.config import RunConfig, Tokens
from darwinlm.config.described import Setting, all_settings, docstrings

if TYPE_CHECKING:
    from darwinlm.show.result import Result


@dataclass(frozen=True)
class Command:
    """A function of the API, and others that a flag calls in its place."""

    function: Callable[..., Result]
    instead: Mapping[str, Callable[..., Result]] = field(default_factory=dict)
    """{flag: function}; a flag that is no argument of the function is a switch."""

    @property
    def functions(self) -> tuple[Callable[..., Result], ...]:
        """All of them, the main one first."""
        return (self.function, *dict.fromkeys(self.instead.values()))

    @property
    def summary(self) -> str:
        """The first sentence of the docstring, without its stop."""
        return inspect.cleandoc(self.function.__doc__ or "").split("\n\n")[0].removesuffix(".").replace("\n", " ")

    @property
    def words(self) -> list[str]:
        """Arguments that may be typed without their names, in order."""
        return list(_signature(self.function)[1])

    @functools.cached_property
    def own(self) -> dict[str, Setting]:
        """Arguments of the functions, and the switches between them."""
        found: dict[str, Setting] = {}
        for function in self.functions:
            for name, argument in _signature(function)[0].items():
                found.setdefault(name, argument)
        for flag, function in self.instead.items():
            text = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
            found.setdefault(flag, Setting(flag, bool, False, f"{text[0].lower()}{text[1:]}"))
        return found

    @functools.cached_property
    def settings(self) -> dict[str, Setting]:
        """The settings that count, without those of the same name as an argument."""
        taken = {name for function in self.functions for name in settings_of(function)} - set(self.own)
        texts = docstrings(keywords.Machine)
        own = [Setting(name, str, "", texts[name]) for name in texts if name in taken]
        known = [setting for setting in all_settings().values() if setting.name.split(".")[0] in taken]
        return {setting.name: setting for setting in (*known, *own)}

    @property
    def groups(self) -> list[str]:
        """Groups of settings that count."""
        return [group for group in GROUPS if any(name.startswith(f"{group}.") for name in self.settings)]

    @property
    def options(self) -> dict[str, Setting]:
        """All that can be typed."""
        return {**self.own, **self.settings}


def _type(parameter: inspect.Parameter) -> Any:
    """The annotation of a function's argument; what it names is imported here, not by the package."""
    return eval(str(parameter.annotation), {**vars(darwinlm), "Tokens": Tokens, "Unpack": Unpack})


@functools.cache
def _signature(function: Callable[..., Any]) -> tuple[dict[str, Setting], list[str]]:
    """The arguments of a function, and which of them may be words."""
    texts, found, words = _texts(function), {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        kind = _type(parameter)
        default = "" if parameter.default is inspect.Parameter.empty else parameter.default
        found[name] = Setting(name, kind, default, texts.get(name, ""))
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            words.append(name)
    return found, words


def arguments_of(function: Callable[..., Any]) -> set[str]:
    """Names of a function's own arguments."""
    return set(_signature(function)[0])


@functools.cache
def settings_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The settings and groups of settings that a function takes: its `**settings`."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (taken,) = get_args(_type(parameter))
            return tuple(taken.__annotations__)
    return ()


def _texts(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    _, _, part = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", part.split("\n\n")[0], re.M)
    return {name: " ".join(text.split()) for name, text in found}


GROUPS = tuple(each.name for each in fields(RunConfig) if is_dataclass(getattr(RunConfig(), each.name)))
COMMANDS = {
    "prune": Command(darwinlm.prune, {"targets": darwinlm.prune_family}),
    "train": Command(darwinlm.train),
    "recipe": Command(darwinlm.run_recipe),
    "plan": Command(darwinlm.plan, {"recipe": darwinlm.plan_recipe}),
    "demo": Command(darwinlm.demo),
    "eval": Command(darwinlm.evaluate),
    "bench": Command(darwinlm.bench, {"table": darwinlm.measure_latency}),
    "compare": Command(darwinlm.compare),
    "report": Command(darwinlm.report),
    "export": Command(darwinlm.export_checkpoint),
    "import": Command(darwinlm.import_checkpoint),
    "database": Command(darwinlm.build_database, {"check": darwinlm.check_database, "show": darwinlm.check_database}),
    "search": Command(darwinlm.search_genome),
    "refit": Command(darwinlm.refit_genome),
    "schema": Command(darwinlm.settings_schema),
}
KINDS_OF_COMMANDS = {
    "Make a smaller model": ("demo", "plan", "prune", "train", "recipe"),
    "Measure": ("eval", "bench", "compare", "report"),
    "Exchange": ("export", "import", "schema", "completion"),
    "The steps of prune": ("database", "search", "refit"),
}
