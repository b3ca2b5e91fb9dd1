"""The course of a training as it is kept: a line for every step and every look at the held-out text."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from darwinlm.runtime.files import read_lines, write_text
from darwinlm.runtime.pictures import BLUE, Panel, write_panels

Lines = Sequence[dict[str, Any]]


class History:
    """`history.jsonl`: what happened up to a step.

    Args:
        path: of the file.
        step: lines after this step are dropped: what came after the state that a training goes on from.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line["step"] <= step] if step else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def draw_curves(lines: Lines, path: Path) -> None:
    """All curves as PNG."""
    panels = curves(lines)
    write_panels(panels, path, columns=len(panels), size=(4.5, 3.6))


def curves(lines: Lines) -> list[Panel]:
    """Loss and held-out quality against tokens."""
    losses = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "held_out" in line]
    series = {"training loss": [(line["tokens"], line["loss"]) for line in losses]}
    for key, title in (("perplexity", "held-out perplexity"), ("kl", "held-out KL to the teacher")):
        if found := [(line["tokens"], line["held_out"][key]) for line in looks if key in line["held_out"]]:
            series[title] = found
    return [functools.partial(_curve, title=title, points=points) for title, points in series.items() if points]


def _curve(axis: Axes, *, title: str, points: Sequence[tuple[int, float]]) -> None:
    axis.plot(*zip(*points), color=BLUE, marker="." * (len(points) < 30))
    axis.set(title=title, xlabel="tokens")
    axis.grid(alpha=0.3, linewidth=0.5)
