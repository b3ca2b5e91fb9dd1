"""The report's own pictures, as SVG that takes the colour of the page's text: what the genome left, how the search went."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from darwinlm.models.family import place_of
from darwinlm.models.sites import TITLES, Kind

_INK = "#010203"
"""Stands for the page's text colour until the picture is SVG."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.parse_math": False,  # names are names
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}
_KEPT, _GONE, _TARGET = "#3b7dd8", "#e5533d", "#e0902f"
_ONE_LAYER = 0.2


def as_svg(name: str, draw: Callable[..., Figure], *arguments: Any) -> str:
    """A picture as an SVG element that can stand in a page, the same bytes every time.

    Args:
        name: unlike that of any other picture of the page.
        draw: makes the figure.
        arguments: of `draw`.
    """
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        text = io.StringIO()
        draw(*arguments).savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawn = text.getvalue().replace(_INK, "currentColor")
    drawn = re.sub(r'(\bid="|\burl\(#|\bhref="#)', rf"\g<1>{name}-", drawn[drawn.index("<svg") :])
    opening = r'<svg \1 role="img" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, drawn, count=1)


def genome_figure(levels: dict[str, int], tops: dict[str, int], target: float) -> Figure:
    """What is left of every module: bars by layer, attention above the MLP; the line is the uniform model.

    Args:
        levels: {module name: level}.
        tops: {module name: its last level, at which it is gone}.
        target: part of every kind of module that is to leave.
    """
    kinds: list[tuple[str, Kind]] = [(title, kind) for kind, title in TITLES.items() if _of(levels, kind)]
    layers = 1 + max(place_of(name)[0] for name in levels)
    figure = Figure(figsize=(max(7.0, 1.2 + _ONE_LAYER * layers), 1.7 * len(kinds) + 0.5), layout="constrained")
    for axis, (title, kind) in zip(figure.subplots(len(kinds), 1, squeeze=False, sharex=True)[:, 0], kinds):
        found = _of(levels, kind)
        left = {place_of(name)[0]: 1 - level / tops[name] for name, level in found.items()}
        axis.bar(list(left), [1.0] * len(left), color=_KEPT, alpha=0.15, width=0.8)
        axis.bar(list(left), list(left.values()), color=_KEPT, width=0.8)
        gone = [layer for layer, share in left.items() if share == 0]
        axis.plot(gone, [0.07] * len(gone), "x", color=_GONE, markersize=5, markeredgewidth=2)
        axis.axhline(1 - target, color=_TARGET, linewidth=1.5, linestyle="--")
        axis.set(ylabel=f"{title} left", ylim=(0, 1.0), xlim=(-0.7, layers - 0.3))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_xticks(range(0, layers, -(-layers // 16)))
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("layer", fontsize=10)
    return figure


def _of(levels: dict[str, int], kind: Kind) -> dict[str, int]:
    return {name: level for name, level in levels.items() if place_of(name)[1] == kind}


def search_figure(history: Sequence[dict[str, Any]], start: dict[str, Any]) -> Figure:
    """KL of the parent by generation on the tokens it was selected on, points where it changed; held-out checks beside.

    Args:
        history: lines of `search/history.jsonl`.
        start: `search/start.json`; empty where there is none.
    """
    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    axis = figure.subplots()
    places = [line["generation"] + 1 for line in history]
    axis.plot(
        places, [line["kl"] for line in history], color=_KEPT, linewidth=1.5, label="parent, tokens of the selection"
    )
    better = [line for line in history if line["improved"]]
    axis.plot(
        [line["generation"] + 1 for line in better],
        [line["kl"] for line in better],
        "o",
        color=_KEPT,
        markersize=4,
        label="a new parent",
    )
    checked = [(0, start), *((line["generation"] + 1, line) for line in history)]
    if checks := [(place, values["held_out"]["kl"]) for place, values in checked if values.get("held_out")]:
        axis.plot(*zip(*checks), "s--", color=_TARGET, markersize=4, linewidth=1.2, label="parent, held-out text")
    axis.set(xlabel="generation", ylabel="KL to dense, nats per token", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9)
    return figure
