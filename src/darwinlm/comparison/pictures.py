"""The pictures of a comparison: perplexity against parameters, and what each method left where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from darwinlm.comparison.table import OURS, Cell, Comparison, Row
from darwinlm.models.family import place_of
from darwinlm.models.sites import TITLES
from darwinlm.runtime.pictures import logarithmic, write_png

_MARKERS = "osD^v<>pPX*h"


def draw_tradeoff(comparison: Comparison, path: Path) -> None:
    """Perplexity, on a logarithmic axis, against parameters: a line for each method, a star for the dense model, as PNG."""
    trained = bool(comparison.train_tokens)
    figure = Figure(figsize=(14 if trained else 9, 5.5), layout="constrained")
    panels = figure.subplots(1, 1 + trained, squeeze=False, sharey=True)[0]
    titles = ["as pruned", f"after {comparison.train_tokens:,} tokens of the same post-training"]
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows.setdefault(row.method, []).append(row)
    for panel, (axis, title) in enumerate(zip(panels, titles)):
        for place, (method, found) in enumerate(rows.items()):
            values = [row.trained_perplexity if panel else row.perplexity for row in found]
            _line(axis, place, found, values, method == OURS)
        axis.plot(
            comparison.dense.parameters / 1e6, comparison.dense.perplexity, "k*", markersize=12, label="dense, as it is"
        )
        logarithmic(axis)
        axis.set(title=title, xlabel="parameters, millions", ylabel="perplexity, held-out text" if not panel else "")
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    write_png(figure, path)


def _line(axis: Any, place: int, rows: list[Row], values: list[float | None], ours: bool) -> None:
    """One method; ours is drawn last and heavier."""
    points = sorted((row.parameters / 1e6, value) for row, value in zip(rows, values) if value is not None)
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color="black" if ours else colormaps["tab20"](place % 20),
        marker=_MARKERS[place % len(_MARKERS)],
        linewidth=2.5 if ours else 1.2,
        markersize=7 if ours else 5,
        zorder=5 if ours else 3,
        label=rows[0].title,
    )


def draw_allocations(comparison: Comparison, level: float, path: Path) -> None:
    """What the methods left of every module at a level, as PNG: a heat map for each, layers by kinds of module."""
    cells = [cell for cell in comparison.cells if cell.level == level]
    first_seeds = list({cell.method: cell for cell in reversed(cells)}.values())[::-1]
    columns = 2
    rows = -(-len(first_seeds) // columns)
    layers = 1 + max(place_of(name)[0] for cell in cells for name in cell.kept)
    figure = Figure(figsize=(2 * (1.6 + max(3.0, 0.22 * layers)), 0.6 + 1.05 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    image = None
    for place, axis in enumerate(panels.T.flat):
        if place >= len(first_seeds):
            axis.set_visible(False)
            continue
        image = axis.imshow(_kept(first_seeds[place], layers), aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axis.set_title(first_seeds[place].title, fontsize=9, loc="left")
        axis.set_yticks(range(len(TITLES)), labels=list(TITLES.values()), fontsize=8)
        axis.set_xticks(range(0, layers, -(-layers // 16)))
        axis.tick_params(length=0, labelsize=8)
    figure.supxlabel(f"layer; level {level:g}, methods with several seeds by their first", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=panels, label="part of the columns that is left", shrink=0.8)
    write_png(figure, path)


def _kept(cell: Cell, layers: int) -> np.ndarray:
    """(kinds, layers); modules that the dense model has not are blank."""
    values = np.full((len(TITLES), layers), np.nan)
    for name, kept in cell.kept.items():
        layer, kind = place_of(name)
        values[list(TITLES).index(kind), layer] = kept
    return values
