"""Text of hub data sets, streamed; a connection that breaks is made again, and the reading goes on where it was."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from darwinlm.data.reading import Reading
from darwinlm.errors import InterruptedReading, RequestError, first_line
from darwinlm.runtime.progress import log

WAITS = (2.0, 10.0, 60.0, 300.0)
"""Seconds before each new try; a row that comes begins them anew."""
MARKED_ROWS = 1000
"""Rows between places that a new connection can begin at."""
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "fsspec", "huggingface_hub")
_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[^:/,=]*){0,2}")


@dataclass(frozen=True)
class HubPreset:
    """A hub data set with the filter that it is known by."""

    name: str
    score_field: str
    min_score: float
    tokens: int
    """That it has, about, before the filter."""


HUB_PRESETS = {
    # The paper keeps documents scored >= 0.9 (arXiv 2502.07780, section 4), on the scale of the language score.
    "fineweb-edu": HubPreset("HuggingFaceFW/fineweb-edu:sample-100BT", "language_score", 0.9, 100_000_000_000),
}


def is_hub_name(source: str) -> bool:
    """Whether it may be a data set: a preset, or `owner/name`, `owner/name:configuration`, `owner/name:configuration:split`."""
    return source in HUB_PRESETS or (_NAME.fullmatch(source) is not None and not source.startswith("."))


def hub_documents(source: str, reading: Reading) -> Iterator[str]:
    """The documents of a data set.

    Raises:
        RequestError: it cannot be had.
        InterruptedReading: the connection broke, and could not be made again.
    """
    preset = HUB_PRESETS.get(source)
    for number, row in enumerate(_rows(source, preset.name if preset else source), 1):
        if preset and (row.get(preset.score_field) or 0) < preset.min_score:
            continue
        if (text := reading.text(row, f"data set '{source}', row {number}")) is not None:
            yield text


class _Place:
    """How many rows were taken, and the newest place that a new connection can begin at."""

    def __init__(self) -> None:
        self.taken, self.marked, self.state = 0, 0, None


def _rows(source: str, name: str) -> Iterator[Any]:
    place, failed = _Place(), 0
    rows = _opened(name, place)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as fault:  # of any of the libraries below: each has its own kinds
            if not place.taken or not _is_network(fault):
                raise _unreadable(source, fault) from fault
            told = f"The hub data set '{source}' broke off after {place.taken:,} rows ({first_line(fault)})"
            if failed == len(WAITS):
                raise InterruptedReading(f"{told}, {failed} new tries included. The same command goes on.") from fault
            log.warning("%s; next try in %g s.", told, WAITS[failed])
            time.sleep(WAITS[failed])
            failed, rows = failed + 1, _opened(name, place)
        else:
            place.taken, failed = place.taken + 1, 0
            yield row


def _opened(name: str, place: _Place) -> Iterator[Any]:
    """The rows from a place on."""
    from datasets import load_dataset  # slow to import, and needed by this source alone

    path, configuration, split = [*name.split(":"), "", ""][:3]
    data: Any = load_dataset(path, name=configuration or None, split=split or "train", streaming=True)
    can_mark = hasattr(data, "state_dict")
    if place.state is not None:
        data.load_state_dict(place.state)
    for row in islice(data, place.taken - place.marked, None):
        yield row
        if can_mark and place.taken % MARKED_ROWS == 0:
            place.marked, place.state = place.taken, data.state_dict()


def _is_network(fault: Exception) -> bool:
    kinds = {kind.__module__.split(".")[0] for kind in type(fault).__mro__}
    return isinstance(fault, (OSError, TimeoutError)) or bool(kinds & set(_NETWORK))


def _unreadable(source: str, fault: Exception) -> RequestError:
    return RequestError(
        f"The hub data set '{source}' cannot be read ({first_line(fault)}). Check its name, its configuration and split "
        "(owner/name:configuration:split, or owner/name::split) and the connection."
    )
