"""The course of a training as it is kept: a line for every step and every look at the held-out text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from darwinlm.runtime.files import write_text, written_whole


class History:
    """`history.jsonl`: what happened up to a step.

    Args:
        path: of the file.
        step: lines after this step are dropped: what came after the state that a training goes on from.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in read_history(path) if line["step"] <= step] if step else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history; a last one that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """`curves_figure` as PNG."""
    with written_whole(path) as partial:
        curves_figure(lines).savefig(partial, format="png", dpi=150)


def curves_figure(lines: list[dict[str, Any]]) -> Figure:
    """Loss and held-out quality against tokens."""
    losses = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "held_out" in line]
    series = [("training loss", losses, lambda line: line["loss"])]
    series += [("held-out perplexity", looks, lambda line: line["held_out"]["perplexity"])]
    if looks and "kl" in looks[0]["held_out"]:
        series.append(("held-out KL to the teacher", looks, lambda line: line["held_out"]["kl"]))
    figure = Figure(figsize=(4.5 * len(series), 3.6), layout="constrained")
    for axis, (title, points, value) in zip(figure.subplots(1, len(series)), series):
        axis.plot(
            [line["tokens"] for line in points], [value(line) for line in points], marker="." * (len(points) < 30)
        )
        axis.set(title=title, xlabel="tokens")
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
