"""The level database of the authors' public code: `<matrix>/<level>.pth`, and a text file that names the levels.

A folder is named after an output matrix, by its full name; its files are whole matrices with
zeros where columns are gone, one for each level. A configuration has a line `<matrix>: <level>` for each.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from darwinlm.errors import DamagedFileError, RequestError, first_line
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import KINDS


def is_authors_database(folder: Path) -> bool:
    """Whether a folder holds folders of .pth files."""
    return folder.is_dir() and next(folder.glob("*/*.pth"), None) is not None


def chosen_files(folder: Path, configuration: Path | None, shape: ModelShape) -> dict[str, Path]:
    """{output matrix: its file at the level that the configuration names}; a matrix at a missing level 0 is left out.

    Args:
        folder: the database.
        configuration: the text file; by default the only one in the folder.
        shape: of the dense model.

    Raises:
        RequestError: no configuration, or it does not fit the model or the database; names every line that does not.
    """
    path = configuration or _only_text(folder)
    known = {
        shape.family.output(layer, kind).removesuffix(".weight")
        for layer, widths in enumerate(shape.layers)
        for kind in KINDS
        if widths.has(kind)
    }
    faults: list[str] = []
    found: dict[str, Path] = {}
    for matrix, level in _lines(path).items():
        file = folder / matrix / f"{level}.pth"
        if matrix not in known:
            faults.append(f"'{path}' names '{matrix}', which is no output matrix of the model.")
        elif file.is_file():
            found[matrix] = file
        elif level:
            there = sorted(int(other.stem) for other in file.parent.glob("*.pth") if other.stem.isdigit())
            faults.append(
                f"'{path}' asks for level {level} of '{matrix}', but '{folder}' has of it {there or 'nothing'}."
            )
    if faults:
        raise RequestError(*faults)
    return found


def _only_text(folder: Path) -> Path:
    texts = sorted(folder.glob("*.txt"))
    if len(texts) != 1:
        listed = ", ".join(path.name for path in texts) or "none"
        raise RequestError(
            f"'{folder}' is a level database, so the levels must be named: add --configuration FILE with a line "
            f"`module: level` for each (text files there: {listed})."
        )
    return texts[0]


def _lines(path: Path) -> dict[str, int]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RequestError(f"Cannot read the configuration '{path}': {first_line(fault)}.") from fault
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        matrix, colon, level = (part.strip() for part in line.partition(":"))
        if not colon or not level.isdigit() or matrix in found:
            raise RequestError(
                f"Line {number} of '{path}' is '{line.strip()}'; it must be `module: level`, once for each."
            )
        found[matrix] = int(level)
    return found


def read_matrix(path: Path, like: Tensor) -> Tensor:
    """One level of an output matrix, in the dtype of the dense one, `like` (R, C). Runs no code of the pickle.

    Raises:
        DamagedFileError: the file holds no such matrix.
    """
    try:
        matrix = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as fault:
        raise DamagedFileError(f"'{path}' is damaged, or holds more than tensors: {first_line(fault)}.") from fault
    if not isinstance(matrix, Tensor) or matrix.shape != like.shape:
        shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise DamagedFileError(f"'{path}' holds {shape}, but the model's matrix is {tuple(like.shape)}.")
    return matrix.detach().to(like.dtype)
