"""Settings from YAML files, presets, flags and plain data, joined in layers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from darwinlm.config.checks import missing, violations
from darwinlm.config.described import all_settings, did_you_mean, in_words
from darwinlm.config.settings import RunConfig
from darwinlm.config.target import latest_target
from darwinlm.config.training import Tokens
from darwinlm.errors import RequestError

PRESETS = ("demo", "quick", "paper")
_TARGET = {"target": {"parameters": "60%"}}
"""What is asked where nothing is: this much of the dense model."""
_LIMITS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "finite",
    "too_short": "a list of at least {min_length}",
}
"""Constraints in words, by pydantic's names of what broke them."""
_NO_CODE = (
    "trust_remote_code is asked for, but code that ships with a checkpoint is never run: the families that can be pruned "
    "are those of transformers itself. Take the setting out."
)


def settled(
    values: Mapping[str, Any],
    *,
    preset: str | None = None,
    file: str | None = None,
    default: str | None = None,
    without: Collection[str] = (),
    needs: Collection[str] = (),
) -> RunConfig:
    """The settings of a run. Later layers win: default preset, the run that lies in the output folder, preset, file, values.

    Args:
        values: what was typed, nested as in `config.yaml`.
        preset: name of a preset.
        file: path of a YAML file with settings.
        default: preset that stands below everything else.
        without: groups that do not count for the command at hand and are not checked.
        needs: which of `NEEDED` must be given.
    """
    chosen = preset_values(preset) if preset else {}
    from_file = read_yaml(Path(file)) if file else {}
    output = values.get("output") or from_file.get("output")
    stored = Path(output).expanduser() / "config.yaml" if output else None
    there = read_yaml(stored) if stored and stored.exists() else {}
    return resolve(
        preset_values(default) if default else {}, there, chosen, from_file, values, without=without, needs=needs
    )


def resolve(*layers: Mapping[str, Any], without: Collection[str] = (), needs: Collection[str] = ()) -> RunConfig:
    """Settings from nested plain data; later layers win, what none names keeps its default.

    Args:
        layers: as in `config.yaml`.
        without: groups that are not checked.
        needs: which of `NEEDED` must be given.

    Raises:
        RequestError: a setting is unknown, ill-typed or impossible; all of a kind are named at once.
    """
    asked = merge(*latest_target([_TARGET, *layers]))
    if asked.pop("trust_remote_code", False):  # a run of an earlier version may hold `false`
        raise RequestError(_NO_CODE)
    if found := _misnamed(asked, to_dict(RunConfig())):
        raise RequestError(*found)
    config, ill = _typed(asked)
    beside = missing(config, needs) + violations(config, without)
    if found := [*ill.values(), *(told for told in beside if not any(name in told for name in ill))]:
        raise RequestError(*found)
    return config


def _typed(asked: Mapping[str, Any]) -> tuple[RunConfig, dict[str, str]]:
    """Every value in the type of its setting and within its constraints; and what is to be said of settings that are not, by
    their names: they have their defaults."""
    from pydantic import ValidationError

    found: dict[str, str] = {}
    try:
        return adapter(RunConfig).validate_python(asked), found
    except ValidationError as fault:
        errors = fault.errors()
    for error in errors:
        parts = [str(part) for part in error["loc"]]
        name = next(name for n in (2, 1) if (name := ".".join(parts[:n])) in all_settings())
        value: Any = asked
        for part in name.split("."):
            value = value[part]
        if words := _LIMITS.get(error["type"]):
            found[name] = f"{name} is {value}; it must be {words.format(**error.get('ctx', {}))}."
        else:
            found.setdefault(name, _ill_typed(name, value, all_settings()[name].type))
    sound = {
        group: {name: v for name, v in value.items() if f"{group}.{name}" not in found}
        if isinstance(value, Mapping)
        else value
        for group, value in asked.items()
        if group not in found
    }
    return adapter(RunConfig).validate_python(sound), found


@functools.cache
def adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def converted(name: str, value: Any, kind: Any) -> Any:
    """A value that was typed, in the type it must have.

    Raises:
        RequestError: it is no such value; says what it must be.
    """
    from pydantic import ValidationError

    try:
        return adapter(kind).validate_python(value)
    except ValidationError as fault:
        raise RequestError(_ill_typed(name, value, kind)) from fault


def _ill_typed(name: str, value: Any, kind: Any) -> str:
    choices = [choice for each in (kind, *get_args(kind)) if get_origin(each) is Literal for choice in get_args(each)]
    return f"{name} is {value!r}; it must be {in_words(kind)}.{did_you_mean(value, choices)}"


def _misnamed(asked: Mapping[str, Any], known: Mapping[str, Any], group: str = "") -> list[str]:
    """Settings that do not exist, groups that are none, and values that are empty but must not be."""
    found: list[str] = []
    for key, value in asked.items():
        name = f"{group}{key}"
        if key not in known:
            near = did_you_mean(name, [*(f"{group}{each}" for each in known), *all_settings()])
            found.append(
                f"There is no setting '{name}'{'.' + near if near else '; there are: ' + ', '.join(known) + '.'}"
            )
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
        raise RequestError(
            f"Cannot read the settings in '{path}': {fault.strerror}. Give the path of a YAML file."
        ) from fault
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise RequestError(f"'{path}' is not valid YAML: {fault}") from fault
    if not isinstance(values, dict):
        raise RequestError(f"'{path}' must hold settings as `name: value` lines.")
    return values


def preset_values(name: str) -> dict[str, Any]:
    """The settings of a named preset."""
    if name not in PRESETS:
        near = did_you_mean(name, PRESETS)
        raise RequestError(f"There is no preset '{name}'; the presets are: {', '.join(PRESETS)}.{near}")
    return read_yaml(Path(__file__).parent.parent / "presets" / f"{name}.yaml")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Join nested settings; later layers win."""
    joined: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = joined.get(key)
            joined[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return joined
