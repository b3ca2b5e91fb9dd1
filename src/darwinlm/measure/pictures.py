"""Panels of what was measured, from numbers as they lie in a run directory; some of them as PNG files, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from darwinlm.database.store import Database, ModuleRecord
from darwinlm.models.family import place_of
from darwinlm.models.sites import KINDS, TITLES, Kind, layer_of
from darwinlm.runtime.pictures import BLUE, ORANGE, RED, Panel, logarithmic, write_panels

Facts = Mapping[str, Any]


def by_layer(layers: int, height: float = 2.1) -> tuple[float, float]:
    """The size of a panel that has a place for each layer."""
    return max(4.6, 1.2 + 0.2 * layers), height


def draw_errors(database: Database, path: Path) -> None:
    """`errors` as PNG."""
    panels = errors(database)
    layers = 1 + max(ladder.layer for ladder in database.ladders())
    write_panels(panels, path, columns=len(panels), size=(5, max(3.0, 0.22 * layers + 1.5)))


def errors(database: Database) -> list[Panel]:
    """Heat maps of the relative output error, layers x levels, one for each kind of module."""
    records = list(database.modules.values())
    of: dict[Kind, list[ModuleRecord]] = {
        kind: [record for record in records if record.ladder.kind == kind] for kind in KINDS
    }
    return [partial(_errors, title=TITLES[kind], records=found) for kind, found in of.items() if found]


def _errors(axis: Axes, *, title: str, records: Sequence[ModuleRecord]) -> None:
    layers = 1 + max(record.ladder.layer for record in records)
    values = np.full((layers, max(record.ladder.top for record in records)), np.nan)
    for record in records:
        ladder = record.ladder
        values[ladder.layer, : ladder.top] = np.maximum(record.relative_errors[1:], 1e-3)
        values[ladder.layer, : ladder.present] = np.nan  # closed
    image = axis.imshow(values, aspect="auto", cmap="viridis", norm=LogNorm(1e-3, 1))
    axis.set(title=title, xlabel="level", ylabel="layer")
    axis.set_xticks(range(values.shape[1]), labels=[str(level + 1) for level in range(values.shape[1])])
    axis.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.figure.colorbar(image, ax=axis, label="relative error", format="%g")


def genome(levels: Mapping[str, int], tops: Mapping[str, int], share: float) -> list[Panel]:
    """What is left of every module, bars by layer, one panel for each kind; the line is the uniform model.

    Args:
        levels: {module name: level}.
        tops: {module name: its last level, at which it is gone}.
        share: part of every kind of module that is to stay.
    """
    left: dict[str, dict[int, float]] = {}
    for name, level in levels.items():
        layer, kind = place_of(name)
        left.setdefault(kind, {})[layer] = 1 - level / tops[name]
    layers = 1 + max(layer for found in left.values() for layer in found)
    return [
        partial(_left, title=TITLES[kind], left=left[kind], layers=layers, share=share)
        for kind in KINDS
        if kind in left
    ]


def _left(axis: Axes, *, title: str, left: Mapping[int, float], layers: int, share: float) -> None:
    axis.bar(list(left), [1.0] * len(left), color=BLUE, alpha=0.15, width=0.8)
    axis.bar(list(left), list(left.values()), color=BLUE, width=0.8)
    gone = [layer for layer, part in left.items() if part == 0]
    axis.plot(gone, [0.07] * len(gone), "x", color=RED, markersize=5, markeredgewidth=2)
    axis.axhline(share, color=ORANGE, linewidth=1.5, linestyle="--")
    axis.set(xlabel="layer", ylabel=f"{title} left", ylim=(0, 1.0), xlim=(-0.7, layers - 0.3))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xticks(range(0, layers, -(-layers // 16)))


def start(found: Facts) -> Panel:
    """The KL of every allocation that a start scored, in turn, and the best one so far; `found` is `search/start.json`."""

    def panel(axis: Axes) -> None:
        kls = [kl for _, kl in found["scores"]]
        places = range(1, len(kls) + 1)
        axis.plot(places, kls, ".", color=BLUE, alpha=0.6, label="an allocation")
        axis.plot(places, np.minimum.accumulate(kls), color=BLUE, linewidth=1.5, label="the best so far")
        _held_out(axis, [(round_["genomes"], round_) for round_ in found["rounds"]])
        axis.set(xlabel="allocations scored", ylabel="KL to dense, nats")
        logarithmic(axis)
        _tidy(axis)

    return panel


def evolution(history: Sequence[Facts], first: Facts) -> Panel:
    """KL of the parent by generation on the tokens it was selected on, points where it changed; held-out checks beside.

    Args:
        history: lines of `search/history.jsonl`.
        first: `search/start.json`; empty where there is none.
    """

    def panel(axis: Axes) -> None:
        parents = [(line["generation"] + 1, line["kl"]) for line in history]
        axis.plot(*zip(*parents), color=BLUE, linewidth=1.5, label="parent, tokens of the selection")
        if new := [parent for parent, line in zip(parents, history) if line["improved"]]:
            axis.plot(*zip(*new), "o", color=BLUE, markersize=4, label="a new parent")
        _held_out(axis, [(0, first), *((line["generation"] + 1, line) for line in history)])
        axis.set(xlabel="generation", ylabel="KL to dense, nats", ylim=(0, None))
        _tidy(axis)

    return panel


def _held_out(axis: Axes, checked: Sequence[tuple[int, Facts]]) -> None:
    if checks := [(place, values["held_out"]["kl"]) for place, values in checked if values.get("held_out")]:
        axis.plot(*zip(*checks), "s--", color=ORANGE, markersize=4, linewidth=1.2, label="on held-out text")


def _tidy(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
    axis.legend(fontsize=8)


def refit(matrices: Mapping[str, Facts]) -> Panel:
    """How much of what the residual stream lacks behind a module its refit took; `matrices` as in `refit.json`."""

    def panel(axis: Axes) -> None:
        layers = [layer_of(name) or 0 for name in matrices]
        places = [layer + 0.4 * layers[:i].count(layer) for i, layer in enumerate(layers)]
        taken = [1 - one["after"] / one["before"] if one["before"] else 0.0 for one in matrices.values()]
        axis.bar(places, taken, color=BLUE, width=0.36)
        axis.set(xlabel="layer", ylabel="part of the lack taken")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))

    return panel


def draw_bench(result: Facts, path: Path) -> None:
    """`bench` as PNG."""
    write_panels(bench(result), path, columns=2, size=bench_size(result))


def bench_size(result: Facts) -> tuple[float, float]:
    """Of one of its panels."""
    return 4.6, 1.4 + 0.45 * len(result["models"])


def bench(result: Facts) -> list[Panel]:
    """Bars of tokens per second with quartiles, prefill and decode of each piece of work.

    Args:
        result: `BenchResult.as_dict()`.
    """
    names = [Path(model["name"]).name for model in result["models"]]
    promised = [model["layer_ratio"] for model in result["models"]]
    return [
        partial(
            _speeds, names=names, promised=promised, stage=stage, rows=[rows[place] for rows in result["measurements"]]
        )
        for place in range(len(result["measurements"][0]))
        for stage in ("prefill", "decode")
    ]


def _speeds(axis: Axes, *, names: Sequence[str], promised: Sequence[float], stage: str, rows: Sequence[Facts]) -> None:
    speeds = [row[f"{stage}_tokens_per_second"] for row in rows]
    spreads = [row[f"{stage}_seconds"] for row in rows]
    below = [speed * (1 - spread["median"] / spread["high"]) for speed, spread in zip(speeds, spreads)]
    above = [speed * (spread["median"] / spread["low"] - 1) for speed, spread in zip(speeds, spreads)]
    axis.barh(
        range(len(names)),
        speeds,
        xerr=[below, above],
        height=0.6,
        color=BLUE,
        ecolor=rcParams["axes.edgecolor"],
        capsize=3,
    )
    for place, ratio in list(enumerate(promised))[1:]:
        axis.plot([speeds[0] * ratio] * 2, [place - 0.38, place + 0.38], color=ORANGE, linewidth=2.5)
    axis.set_yticks(range(len(names)), labels=names)
    axis.invert_yaxis()
    work = rows[0]["work"]
    axis.set_title(f"{stage}, {work['sequences']} x {work['tokens']:,} tokens", fontsize=10)
    axis.set_xlabel("tokens/s; the line is what the layers' parameters promise", fontsize=8)


def draw_family(dense: Facts, members: Sequence[Facts], path: Path) -> None:
    """`family` as PNG."""
    write_panels(family(dense, members), path, columns=2, size=(5.5, 4.5))


def family(dense: Facts, members: Sequence[Facts]) -> list[Panel]:
    """Perplexity and KL against parameters: the members, the uniform models of their sizes, and the dense one.

    Args:
        dense: parameters, perplexity and KL.
        members: the same under `pruned` and `uniform`, and the target's name.
    """
    quantities = {"perplexity": "perplexity", "kl": "KL to the dense model"}
    return [
        partial(_against_size, key=key, label=label, dense=dense, members=members) for key, label in quantities.items()
    ]


def _against_size(axis: Axes, *, key: str, label: str, dense: Facts, members: Sequence[Facts]) -> None:
    for name, title, colour, style in (
        ("uniform", "uniform", ORANGE, "s--"),
        ("pruned", "DarwinLM, nested", BLUE, "o-"),
    ):
        points = sorted((member[name]["parameters"] / 1e6, member[name][key]) for member in members)
        axis.plot(*zip(*points), style, color=colour, label=title)
    axis.plot(dense["parameters"] / 1e6, dense[key], "*", color=rcParams["text.color"], markersize=12, label="dense")
    for member in members:
        place = (member["pruned"]["parameters"] / 1e6, member["pruned"][key])
        axis.annotate(member["target"], place, xytext=(4, -12), textcoords="offset points", fontsize=8)
    axis.set(xlabel="parameters, millions", ylabel=f"{label}, held-out text")
    axis.legend(fontsize=8)
