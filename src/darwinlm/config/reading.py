"""Settings from YAML files, presets, flags and plain data, joined in layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, _optionals, set_parsing_settings
from jsonargparse.typing import register_type

from darwinlm.config.checks import faults
from darwinlm.config.settings import RunConfig
from darwinlm.config.training import Tokens
from darwinlm.config.wishes import latest_wish
from darwinlm.errors import RequestError

PRESETS = ("demo", "quick", "paper")
_TARGET = {"target": {"parameters": "60%"}}
"""What is asked where nothing is: this much of the dense model."""
_NO_CODE = (
    "trust_remote_code is asked for, but code that ships with a checkpoint is never run: the families that can be pruned "
    "are those of transformers itself. Take the setting out."
)
register_type(Tokens, serializer=int, deserializer=Tokens)


def settings_parser(without: Collection[str] = (), **options: Any) -> ArgumentParser:
    """A parser whose flags are the fields of `RunConfig`; the command line adds its own on top.

    Args:
        without: fields that get no flag.
        options: of the parser.
    """
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    with _fields_with_docstrings():
        parser.add_class_arguments(RunConfig, skip=set(without))
    return parser


@contextmanager
def _fields_with_docstrings() -> Iterator[None]:
    """jsonargparse's setting, which is one for the whole process: other users of it get theirs back."""
    before = getattr(_optionals, "_docstring_parse_options", {}).get("attribute_docstrings", False)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        yield
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=before)


def resolve(*layers: Mapping[str, Any], without: Collection[str] = ()) -> RunConfig:
    """Settings from nested plain data; later layers win, what none names keeps its default.

    Args:
        layers: as in `config.yaml`.
        without: groups that are not checked.

    Raises:
        RequestError: a setting is unknown, ill-typed or impossible; all impossible ones are named at once.
    """
    parser, asked = settings_parser(), merge(*latest_wish([_TARGET, *layers]))
    if asked.pop("trust_remote_code", False):  # a run of an earlier version may hold `false`
        raise RequestError(_NO_CODE)
    if found := _misnamed(asked, to_dict(RunConfig())):
        raise RequestError(*found)
    try:
        values = parser.parse_object(asked)
    except ArgumentError as fault:
        raise RequestError(f"The settings do not fit: {' '.join(str(fault).split())}") from fault
    config = RunConfig(**vars(parser.instantiate(values)))
    if found := faults(config, without):
        raise RequestError(*found)
    return config


def _misnamed(asked: Mapping[str, Any], known: Mapping[str, Any], group: str = "") -> list[str]:
    """Settings that do not exist, groups that are none, and values that are empty but must not be."""
    found: list[str] = []
    for key, value in asked.items():
        name = f"{group}{key}"
        if key not in known:
            found.append(f"There is no setting '{name}'; there are: {', '.join(known)}.")
        elif isinstance(known[key], dict) and not isinstance(value, Mapping):
            found.append(f"'{name}' is {value!r}; it must be a group of settings: {', '.join(known[key])}.")
        elif isinstance(known[key], dict):
            found += _misnamed(value, known[key], f"{name}.")
        elif value is None and known[key] is not None:
            found.append(f"'{name}' is empty; leave it out for its default, {known[key]!r}.")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A settings dataclass as plain data for YAML and JSON."""
    return dataclasses.asdict(config, dict_factory=_plain)


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Without classes of our own."""
    return {name: int(value) if isinstance(value, Tokens) else value for name, value in pairs}


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file.

    Raises:
        RequestError: the file cannot be read or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RequestError(f"Cannot read the settings in '{path}': {fault.strerror}.") from fault
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise RequestError(f"'{path}' is not valid YAML: {fault}") from fault
    if not isinstance(values, dict):
        raise RequestError(f"'{path}' must hold settings as `name: value` lines.")
    return values


def preset_values(name: str) -> dict[str, Any]:
    """The settings of a named preset."""
    if name not in PRESETS:
        raise RequestError(f"There is no preset '{name}'; the presets are: {', '.join(PRESETS)}.")
    return read_yaml(Path(__file__).parent.parent / "presets" / f"{name}.yaml")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Join nested settings; later layers win."""
    joined: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = joined.get(key)
            joined[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return joined


def with_shortcuts(config: RunConfig, tokens: str | None, teacher: str | None, lora: bool) -> RunConfig:
    """The settings of a training with what was typed for short.

    Raises:
        RequestError: `tokens` is no number of tokens.
    """
    given: dict[str, Any] = {"method": "lora"} if lora else {}
    if teacher:
        given["teacher"] = teacher
    if tokens:
        try:
            given["tokens"] = Tokens(tokens)
        except ValueError as fault:
            raise RequestError(f"--tokens: {fault}.") from fault
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **given))
