"""Pictures are panels: side by side in a PNG file, or each for itself as SVG that takes the colour of a page's text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from darwinlm.runtime.files import written_whole

Panel = Callable[[Axes], None]
"""Draws one diagram."""
BLUE, RED, ORANGE = "#3b7dd8", "#e5533d", "#e0902f"
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


def logarithmic(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with numbers as people write them."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def write_panels(panels: Sequence[Panel], path: Path, *, columns: int, size: tuple[float, float]) -> None:
    """Panels in rows as PNG; `size` is that of each, in inches."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    for axis, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels):
        _draw(axis, panel)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def as_svg(name: str, panel: Panel, size: tuple[float, float] = (4.6, 3.0)) -> str:
    """A panel as an SVG element that can stand in a page, the same bytes every time.

    It shrinks with its page to two thirds of its size, and then scrolls.

    Args:
        name: unlike that of any other picture of the page.
        panel: what is drawn.
        size: in inches.
    """
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure, text = Figure(figsize=size, layout="constrained"), io.StringIO()
        _draw(figure.subplots(), panel)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawn = text.getvalue().replace(_INK, "currentColor")
    drawn = re.sub(r'(\bid="|\burl\(#|\bhref="#)', rf"\g<1>{name}-", drawn[drawn.index("<svg") :])
    width = f"min-width:{62 * size[0]:.0f}px;max-width:{104 * size[0]:.0f}px"
    wide = ' class="wide"' * (size[0] > 5)
    opening = rf'<svg \1 role="img"{wide} style="{width}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, drawn, count=1)


def _draw(axis: Axes, panel: Panel) -> None:
    panel(axis)
    axis.spines[["top", "right"]].set_visible(False)
