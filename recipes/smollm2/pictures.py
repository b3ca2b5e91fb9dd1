"""The pictures of the page: perplexity against parameters, and quality against training tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from darwinlm.runtime.files import read_lines, written_whole

_OURS = "now"
_TICKS = ((50, (1, 1.5, 2, 3, 5, 7)), (1e3, (1, 2, 5)), (float("inf"), (1,)))
"""Where the largest value is less than so many times the smallest: what powers of ten are multiplied by."""


def draw_sizes(results: Any, path: Path) -> None:
    """Every method's perplexity at all sizes, a panel for each text; dense is a star."""
    texts = list(results.texts)
    figure = Figure(figsize=(5.5 * max(1, len(texts)) + 3, 5), layout="constrained")
    panels = figure.subplots(1, max(1, len(texts)), squeeze=False)[0]
    names = {model["name"]: model["title"] for model in results.models if not model["trained"]}
    for axis, text in zip(panels, texts):
        for place, (name, title) in enumerate(names.items()):
            own = [m for m in results.models if m["name"] == name and not m["trained"]]
            scored = [one for model in own if (one := results.quality(model, text))]
            points = sorted((one["parameters"] / 1e6, one["perplexity"]) for one in scored)
            style = (
                {"color": "black", "linewidth": 2.5, "zorder": 5}
                if name == _OURS
                else {"color": colormaps["tab20"](place % 20)}
            )
            axis.plot(
                [x for x, _ in points], [y for _, y in points], marker="osD^v<>pPX*h"[place % 12], label=title, **style
            )
        if dense := results.quality(results.dense, text):
            axis.plot(dense["parameters"] / 1e6, dense["perplexity"], "k*", markersize=12, label="dense")
        axis.set(title=text, xlabel="parameters, millions", ylabel="perplexity", yscale="log")
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    if texts:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    save(figure, path)


def draw_training(results: Any, trained: list[dict[str, Any]], path: Path) -> None:
    """Held-out perplexity on the way, and the average at tasks, where they were asked, before and after, with standard errors."""
    figure = Figure(figsize=(12 if results.tasks else 8, 4.5), layout="constrained")
    course, *ends = figure.subplots(1, 2 if results.tasks else 1, squeeze=False)[0]
    for place, model in enumerate(trained):
        style = {"color": "black" if model["name"] == _OURS else colormaps["tab10"](place % 10)}
        label = f"{model['title']}, {model['percent']} %"
        looks = [
            line for line in read_lines(Path(model["folder"]).parent / "train/history.jsonl") if "held_out" in line
        ]
        course.plot(
            [l["tokens"] for l in looks], [l["held_out"]["perplexity"] for l in looks], marker="o", label=label, **style
        )
        before = next(
            (
                m
                for m in results.models
                if (m["name"], m["percent"], m["trained"]) == (model["name"], model["percent"], 0)
            ),
            None,
        )
        if before and ends:
            labels = [before["label"], model["label"]]
            averages, errors = (
                [results.tasks[key].get(each) for each in labels] for key in ("averages", "average_errors")
            )
            if None not in averages + errors:
                ends[0].errorbar([0, model["trained"]], averages, yerr=errors, marker="o", capsize=3, **style)
    course.set(xlabel="training tokens", ylabel="perplexity, held-out text", yscale="log")
    for axis in ends:
        axis.set(xlabel="training tokens", ylabel="average at tasks")
    for axis in (course, *ends):
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*course.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As PNG; perplexities stand as numbers."""
    for axis in figure.axes:
        if axis.get_yscale() == "log":
            low, high = axis.get_ylim()
            subs = next(some for most, some in _TICKS if high / low < most)
            axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
            axis.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}")
            )
            axis.yaxis.set_minor_locator(NullLocator())
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
