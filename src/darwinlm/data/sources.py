"""Documents from files, folders, hub data sets, the Python source on this machine, or a mixture of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from darwinlm.data.files import READERS, Rest, file_documents, files_in, kind_of
from darwinlm.data.hub import HUB_PRESETS, hub_documents, is_hub_name
from darwinlm.data.reading import Reading
from darwinlm.data.stdlib import stdlib_documents
from darwinlm.errors import RequestError
from darwinlm.runtime.progress import log


@dataclass(frozen=True)
class Share:
    """One source of a mixture."""

    source: str
    weight: float
    """Of its characters, beside the others' weights."""


def documents(source: str, text_field: str, *, held_out: bool = False, strict: bool = True) -> Iterator[str]:
    """Yield the documents of a source in their order; a text file is one document, a long one in parts.

    Parts end at line ends, and all but the first are `Rest`; put together they are the file's text.

    Args:
        source: see `RunConfig.data`.
        text_field: field that holds the text in structured files; several with commas, the first one there counts.
        held_out: of `stdlib`, the part that is never fitted to; other sources have no such part.
        strict: refuse what cannot be read. Else it is left out, counted and said: for a training that is under way.

    Raises:
        RequestError: nothing readable is there; at the call where that is seen without reading.
    """
    shares = mixture(source)
    opened = [_documents(share.source, Reading(share.source, text_field, strict=strict), held_out) for share in shares]
    return opened[0] if len(opened) == 1 else _mixed(shares, opened)


def mixture(source: str) -> list[Share]:
    """What `SOURCE=WEIGHT,SOURCE=WEIGHT` names; a weight that is not given is 1. A path that is there is one source.

    Raises:
        RequestError: a weight is no positive number, or a name is empty or there twice.
    """
    if _path(source).exists():
        return [Share(source, 1.0)]
    shares: list[Share] = []
    for part in source.split(","):
        found = re.fullmatch(r"(.*)=([-+]?[\d.]+(?:[eE][-+]?\d+)?%?)", part.strip())
        name, weight = (found[1].strip(), found[2].rstrip("%")) if found else (part.strip(), "1")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or not 0 < value < math.inf or name in [share.source for share in shares]:
            raise RequestError(
                f"'{source}' is no mixture of texts: '{part.strip()}' must be a source that stands there once, with a "
                "positive weight, such as fineweb-edu=0.7,notes/=0.3."
            )
        shares.append(Share(name, value))
    return shares


def known_tokens(source: str) -> int | None:
    """Tokens that a source is known to have, about and at most; None where nobody has said."""
    known = [HUB_PRESETS[share.source].tokens if share.source in HUB_PRESETS else None for share in mixture(source)]
    return sum(filter(None, known)) if all(known) else None


def same_source(one: str, other: str) -> bool:
    """Whether two names are of the same text."""
    return one == other or (_path(one).exists() and _path(other).exists() and _path(one).samefile(_path(other)))


def _documents(source: str, reading: Reading, held_out: bool) -> Iterator[str]:
    if source == "stdlib":
        return stdlib_documents(held_out=held_out)
    path = _path(source)
    try:
        if path.is_dir():
            return _of_files(files_in(path), reading)
        if path.is_file():
            if kind_of(path) is None:
                raise RequestError(
                    f"'{source}' is of no kind that can be read; give a {', '.join(READERS)} file, compressed (.gz, .zst, "
                    ".bz2, .xz) or not, or a folder of them."
                )
            return _of_files([path], reading)
        if path.exists():
            raise RequestError(
                f"'{source}' is no file: text is read more than once, so a pipe will not do. Save it first."
            )
    except OSError as fault:
        raise RequestError(f"'{source}' cannot be read: {fault.strerror}.") from fault
    if is_hub_name(source) and kind_of(Path(source)) is None:
        return _said(hub_documents(source, reading), reading)
    raise RequestError(
        f"There is no text at '{source}'. Give a file, a folder, a hub data set such as allenai/c4:en, stdlib, or several "
        "such as fineweb-edu=0.7,notes/=0.3."
    )


def _path(source: str) -> Path:
    """As a path; of what can be none, one that does not exist."""
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):
        return Path("/nonexistent")
    return path


def _of_files(files: list[Path], reading: Reading) -> Iterator[str]:
    return _said((text for file in files for text in file_documents(file, reading)), reading)


def _said(texts: Iterator[str], reading: Reading) -> Iterator[str]:
    try:
        yield from texts
    finally:
        reading.say()


def _mixed(shares: list[Share], opened: list[Iterator[str]]) -> Iterator[str]:
    """The next document is always one of the source that has given least for its weight; where one ends, the others go on.

    Parts of a long text file are documents here: whole, it would crowd out the others.
    """
    given = {share.source: (0.0, share.weight, texts) for share, texts in zip(shares, opened)}
    while given:
        name, (characters, weight, texts) = min(given.items(), key=lambda item: item[1][0] / item[1][1])
        text = next(texts, None)
        if text is None:
            del given[name]
            if given:
                log.info("'%s' has ended; the mixture goes on without it.", name)
            continue
        given[name] = characters + len(text), weight, texts
        yield str(text) if isinstance(text, Rest) else text
