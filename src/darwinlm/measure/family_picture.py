"""The picture of a family: quality against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from darwinlm.runtime.files import written_whole

_QUANTITIES = {"perplexity": "perplexity", "kl": "KL to the dense model"}


def draw_family(dense: dict[str, Any], members: Sequence[dict[str, Any]], path: Path) -> None:
    """Perplexity and KL against parameters: the members, the uniform models of their sizes, and the dense one, as PNG.

    Args:
        dense: parameters, perplexity and KL.
        members: the same under `pruned` and `uniform`, and the target's name.
        path: of the PNG.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, (key, label) in zip(figure.subplots(1, 2), _QUANTITIES.items()):
        for name, title, style in (("uniform", "uniform", "s--"), ("pruned", "DarwinLM, nested", "o-")):
            points = sorted((member[name]["parameters"] / 1e6, member[name][key]) for member in members)
            axis.plot(*zip(*points), style, label=title)
        axis.plot(dense["parameters"] / 1e6, dense[key], "k*", markersize=12, label="dense")
        for member in members:
            place = (member["pruned"]["parameters"] / 1e6, member["pruned"][key])
            axis.annotate(member["target"], place, xytext=(4, -12), textcoords="offset points", fontsize=8)
        axis.set(xlabel="parameters, millions", ylabel=f"{label}, held-out text")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
