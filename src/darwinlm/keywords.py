"""Which settings a command takes, as types of its function's keyword arguments; its flags are derived from them.

A group is a dictionary as in `config.yaml`: `target={"parameters": "60%"}`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypedDict

Group = Mapping[str, Any]


class Machine(TypedDict, total=False):
    """What every command takes that computes."""

    preset: str | None
    """Settings by name: demo, quick or paper."""
    config: str | os.PathLike[str]
    """YAML file with settings; what is typed overrides it."""
    seed: int
    device: str
    dtype: str


class Text(Machine, total=False):
    """And what it reads."""

    data: str | os.PathLike[str]
    blocks: Group


class Speed(Machine, total=False):
    """Of measurements of speed."""

    database: Group
    bench: Group


class Training(Text, total=False):
    """Of post-training."""

    output: str | os.PathLike[str]
    train: Group


class Comparing(Text, total=False):
    """Of a comparison of methods."""

    output: str | os.PathLike[str]
    database: Group
    search: Group
    refit: Group
    sheared: Group


class Run(Text, total=False):
    """Of a run."""

    database: Group
    target: Group
    search: Group
    refit: Group


class Pruning(Run, total=False):
    """Of a run that begins."""

    output: str | os.PathLike[str]


class Continuing(Run, total=False):
    """Of a run that goes on: its model is known."""

    model: str | os.PathLike[str]


class Exporting(TypedDict, total=False):
    """Of what a run ends with."""

    device: str
    data: str | os.PathLike[str]
    blocks: Group
    refit: Group


class Planning(Run, total=False):
    """Of a prediction."""

    train: Group
    plan: Group


class Steps(Planning, total=False):
    """Of an experiment of several steps."""

    model: str | os.PathLike[str]
    output: str | os.PathLike[str]
