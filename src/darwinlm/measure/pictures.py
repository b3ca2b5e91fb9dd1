"""Pictures of what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from darwinlm.database.levels import Kind
from darwinlm.database.store import Database
from darwinlm.runtime.files import written_whole

_TITLES: dict[Kind, str] = {"attention": "Attention", "mlp": "MLP"}


def draw_errors(database: Database, path: Path) -> None:
    """The picture of `errors_figure`, as PNG."""
    with written_whole(path) as partial:
        errors_figure(database).savefig(partial, format="png", dpi=150)


def errors_figure(database: Database) -> Figure:
    """A heat map of the relative output error, layers x levels, one for each kind of module."""
    kinds: list[Kind] = sorted({ladder.kind for ladder in database.ladders()})
    layers = 1 + max(ladder.layer for ladder in database.ladders())
    figure = Figure(figsize=(4.5 * len(kinds) + 1, max(3.0, 0.22 * layers + 1.5)), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axis, kind in zip(axes, kinds):
        records = [record for record in database.modules.values() if record.ladder.kind == kind]
        errors = np.full((layers, max(record.ladder.top for record in records)), np.nan)
        for record in records:
            ladder = record.ladder
            errors[ladder.layer, : ladder.top] = np.maximum(record.relative_errors[1:], 1e-3)
            errors[ladder.layer, : ladder.present] = np.nan  # closed
        image = axis.imshow(errors, aspect="auto", cmap="viridis", norm=LogNorm(1e-3, 1))
        axis.set(title=_TITLES[kind], xlabel="level", ylabel="layer")
        axis.set_xticks(range(errors.shape[1]), labels=[str(level + 1) for level in range(errors.shape[1])])
    figure.colorbar(image, ax=axes, label="relative error", format="%g")
    return figure
