"""The picture of a bench: how much faster each model is, beside what its layers' parameters promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

from darwinlm.runtime.files import written_whole

_STAGES = ("prefill", "decode")


def draw_bench(result: dict[str, Any], path: Path) -> None:
    """The picture of `bench_figure`, as PNG."""
    with written_whole(path) as partial:
        bench_figure(result).savefig(partial, format="png", dpi=150)


def bench_figure(result: dict[str, Any]) -> Figure:
    """Bars of tokens per second with quartiles, a row for each piece of work.

    Args:
        result: `BenchResult.as_dict()`.
    """
    names = [Path(model["name"]).name for model in result["models"]]
    works = [row["work"] for row in result["measurements"][0]]
    figure = Figure(figsize=(9, 1.2 + (0.45 * len(names) + 0.9) * len(works)), layout="constrained")
    panels = figure.subplots(len(works), 2, squeeze=False)
    for place, work in enumerate(works):
        for axis, stage in zip(panels[place], _STAGES):
            rows = [model[place] for model in result["measurements"]]
            _bars(axis, names, rows, stage, [model["layer_ratio"] for model in result["models"]])
            axis.set_title(f"{stage}, {work['sequences']} x {work['tokens']:,} tokens", fontsize=10)
    figure.supxlabel("tokens per second; the line is what the layers' parameters promise", fontsize=9)
    return figure


def _bars(axis: Any, names: list[str], rows: list[dict[str, Any]], stage: str, promised: list[float]) -> None:
    speeds = [row[f"{stage}_tokens_per_second"] for row in rows]
    spreads = [row[f"{stage}_seconds"] for row in rows]
    below = [speed * (1 - spread["median"] / spread["high"]) for speed, spread in zip(speeds, spreads)]
    above = [speed * (spread["median"] / spread["low"] - 1) for speed, spread in zip(speeds, spreads)]
    places = range(len(names))
    axis.barh(
        places, speeds, xerr=[below, above], height=0.6, color="tab:blue", ecolor=rcParams["axes.edgecolor"], capsize=3
    )
    for place, ratio in list(enumerate(promised))[1:]:
        axis.plot([speeds[0] * ratio] * 2, [place - 0.38, place + 0.38], color="tab:orange", linewidth=2.5)
    axis.set_yticks(places, labels=names)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
