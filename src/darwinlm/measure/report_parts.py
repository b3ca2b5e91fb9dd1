"""What the report's sections share: their form, pictures from files, and what is said of files that are not as they should be."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from darwinlm.errors import DamagedFileError
from darwinlm.measure.report_tables import Table


@dataclass(frozen=True)
class Section:
    """One card of the page."""

    name: str
    title: str
    text: str = ""
    pictures: list[Markup] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    code: str = ""
    fold_code: str = ""
    """What to click on to see the code; empty shows it."""


@contextmanager
def told_of(file: Path) -> Iterator[None]:
    """Name the file that the work within reads, where it holds something else than it should.

    Raises:
        DamagedFileError: it does.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as fault:
        raise DamagedFileError(
            f"'{file}' is not what this version of DarwinLM writes ({type(fault).__name__}: {fault}). Make it again, or "
            "move it out of the run directory."
        ) from fault


def image(file: Path) -> Markup:
    """A picture that lies there as PNG."""
    data = base64.b64encode(file.read_bytes()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(file.stem.replace("_", " "), data)
