"""Panels of a comparison of methods, from `compare.json`: quality against size, and what each method left where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes

from darwinlm.models.family import place_of
from darwinlm.models.sites import KINDS, TITLES, Kind
from darwinlm.runtime.pictures import Panel, logarithmic, write_panels

Facts = Mapping[str, Any]
OURS = ("darwinlm", "darwinlm_formats")
"""The methods to stress."""
TRADEOFF_SIZE = (7.0, 4.6)
_MARKERS = "osD^v<>pPX*h"


def draw_comparison(values: Facts, folder: Path) -> None:
    """`tradeoff`, and the `allocations` of each level, as PNG files."""
    panels = tradeoff(values)
    write_panels(panels, folder / "tradeoff.png", columns=len(panels), size=TRADEOFF_SIZE)
    for level in map(float, values["budgets"]):
        panels, size = allocations(values, level)
        write_panels(panels, folder / f"allocations_level{level:.12g}.png", columns=len(panels), size=size)


def tradeoff(values: Facts) -> list[Panel]:
    """Perplexity, on a logarithmic axis, against parameters or bytes: a line for each method, a star for the dense model."""
    titles = {"perplexity": "as pruned"}
    if later := values["train_tokens"]:
        titles["trained_perplexity"] = f"after {later:,} tokens of the same post-training"
    return [partial(_tradeoff, values=values, key=key, title=title) for key, title in titles.items()]


def _tradeoff(axis: Axes, *, values: Facts, key: str, title: str) -> None:
    size = "memory" if values.get("in_bytes") else "parameters"
    for place, method in enumerate(dict.fromkeys(row["method"] for row in values["rows"])):
        _line(axis, place, [row for row in values["rows"] if row["method"] == method], size, key)
    dense, colour, label = values["dense"], rcParams["text.color"], "dense, as it is"
    if size == "memory":
        axis.axhline(dense["perplexity"], color=colour, linestyle=":", label=label)
    else:
        axis.plot(dense["parameters"] / 1e6, dense["perplexity"], "*", color=colour, markersize=12, label=label)
    logarithmic(axis)
    named = {"memory": "file, MB", "parameters": "parameters, millions"}
    axis.set(title=title, xlabel=named[size], ylabel="perplexity, held-out text")
    axis.grid(alpha=0.3, which="both", linewidth=0.5)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _line(axis: Axes, place: int, rows: Sequence[Facts], size: str, key: str) -> None:
    """One method; ours is drawn last and heavier."""
    points = sorted((row[size] / 1e6, row[key]) for row in rows if row[key] is not None)
    ours = rows[0]["method"] in OURS
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=rcParams["text.color"] if ours else colormaps["tab20"](place % 20),
        marker=_MARKERS[place % len(_MARKERS)],
        linewidth=2.5 if ours else 1.2,
        markersize=7 if ours else 5,
        zorder=5 if ours else 3,
        label=rows[0]["title"],
    )


def allocations(values: Facts, level: float) -> tuple[list[Panel], tuple[float, float]]:
    """What the methods left of every module at a level, methods with several seeds by their first, and the size of a panel.

    A heat map for each kind of module, methods by layers.
    """
    first: dict[str, Facts] = {}
    for cell in values["cells"]:
        if cell["level"] == level:
            first.setdefault(cell["method"], cell)
    cells = list(first.values())
    layers = 1 + max(place_of(name)[0] for cell in cells for name in cell["kept"])
    at = f"in {level:,.0f} bytes" if values.get("in_bytes") else f"at level {level:g}"
    panels: list[Panel] = [partial(_allocations, kind=kind, cells=cells, at=at, layers=layers) for kind in KINDS]
    return panels, (2.2 + max(2.6, 0.2 * layers), 1.0 + 0.24 * len(cells))


def _allocations(axis: Axes, *, kind: Kind, cells: Sequence[Facts], at: str, layers: int) -> None:
    left = np.full((len(cells), layers), np.nan)  # modules that the dense model has not are blank
    for row, cell in enumerate(cells):
        for name, part in cell["kept"].items():
            layer, its = place_of(name)
            if its == kind:
                left[row, layer] = part
    image = axis.imshow(left, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axis.set(title=f"{TITLES[kind]} {at}", xlabel="layer")
    axis.set_yticks(range(len(cells)), labels=[cell["title"] for cell in cells], fontsize=8)
    axis.set_xticks(range(0, layers, -(-layers // 16)))
    axis.tick_params(length=0, labelsize=8)
    axis.figure.colorbar(image, ax=axis, label="part that is left")
