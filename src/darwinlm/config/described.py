"""Settings told to people: their names, their types in words, what their docstrings say, and what a mistyped one may mean."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from darwinlm.config.settings import RunConfig
from darwinlm.config.training import Tokens

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Tokens: "a number of tokens, such as 50000000, 50M or 10B",
    type(None): "none",
}


@dataclass(frozen=True)
class Setting:
    """A field of `RunConfig`, or of one of its groups."""

    name: str
    """As in `search.generations`."""
    type: Any
    default: Any
    text: str
    """Its docstring, in one line."""


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Every setting there is, by its full name."""
    return {setting.name: setting for setting in _settings(RunConfig, RunConfig(), "")}


def _settings(cls: type, defaults: Any, group: str) -> Iterator[Setting]:
    types_of, texts = get_type_hints(cls), docstrings(cls)
    for each in fields(cls):
        default = getattr(defaults, each.name)
        if is_dataclass(default):
            yield from _settings(type(default), default, f"{group}{each.name}.")
        else:
            yield Setting(f"{group}{each.name}", types_of[each.name], default, texts.get(each.name, ""))


@functools.cache
def docstrings(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def in_words(kind: Any) -> str:
    """A type as people say it: `a list of whole numbers`, `one of auto, device, host or disk`."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {listed(inside)}" if len(inside) > 1 else listed(inside)
    if origin in (Union, types.UnionType):
        told = list(dict.fromkeys(in_words(each) for each in inside if each is not type(None)))
        if str in inside:  # quantities: the setting's own words say how they are written
            told = ["text"] if float not in inside else ["a number, with its unit where it has one"]
        return " or ".join(told)
    if inside and isinstance(origin, type) and issubclass(origin, Sequence):
        if get_origin(inside[0]) is Literal:
            return f"a list of {listed(get_args(inside[0]))}"
        return "a list of words, such as [a, b]" if str in inside else "a list of whole numbers, such as [1, 2]"
    return _WORDS.get(kind, "text")


def listed(values: Collection[Any], last: str = "or") -> str:
    """`a, b or c`."""
    words = [str(value) for value in values]
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def did_you_mean(typed: Any, known: Collection[str], mark: str = "") -> str:
    """` Did you mean a or b?`, or nothing where nothing is near.

    Args:
        typed: what there is not.
        known: what there is. Of dotted names the last part alone may have been meant.
        mark: what stands in front of each, such as `--`.
    """
    name = str(typed).lower()
    near = difflib.get_close_matches(name, known, 3, 0.75)
    near += [each for each in known if len(name) > 2 and each.lower().startswith(name)]
    last = name.rpartition(".")[2]
    tails = [each for each in known if "." in each and each.rpartition(".")[2] == last]
    close = difflib.get_close_matches(last, sorted({each.rpartition(".")[2] for each in known}), 2, 0.8)
    near += tails + [each for each in known if each.rpartition(".")[2] in close]
    found = list(dict.fromkeys(near))[:3]
    return f" Did you mean {listed([mark + each for each in found])}?" if found else ""


def json_schema() -> dict[str, Any]:
    """JSON schema of `config.yaml`, for editors that check and complete YAML."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(RunConfig).json_schema()
    groups: Mapping[str, Any] = schema.pop("$defs")
    texts = {setting.name: setting.text for setting in all_settings().values()}
    for field in fields(RunConfig):
        known = schema["properties"][field.name]
        if "$ref" not in known:
            known["description"] = texts[field.name]
            continue
        group = groups[known["$ref"].rpartition("/")[2]]
        for name, one in group["properties"].items():
            one["description"] = texts[f"{field.name}.{name}"]
        schema["properties"][field.name] = {**group, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "additionalProperties": False}
