"""The levels of a database in formats, on disk beside it: a folder a format, with a safetensors file a module.

A file holds, as `formats.rounding.stored` packs them, the matrices in front of the output matrix, whole, by their names within
the layer, and as `level.<i>` the output matrix of every level from what the module is now to the last that is not gone,
padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from darwinlm.database.levels import Ladder
from darwinlm.errors import DamagedFileError
from darwinlm.formats.rounding import restored
from darwinlm.runtime.files import CheckedTensors, read_json, sha256_of_file, write_json, write_tensors

_RECORD = "rounded.json"


class RoundedLevels:
    """What lies there of a database's levels in formats.

    Args:
        folder: of the database.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = read_json(folder / _RECORD) if (folder / _RECORD).exists() else {}
        """Of every finished file, beneath the folder, its SHA-256."""
        self._tensors = CheckedTensors("Remove it and run the same command again, which makes it anew.")

    def holds(self, ladder: Ladder, format_: str) -> bool:
        """Whether a module is finished in a format."""
        return (file := _file(ladder, format_)) in self.files and (self.folder / file).is_file()

    def write(self, ladder: Ladder, format_: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Write one module in a format; returns what is to be admitted."""
        file = _file(ladder, format_)
        write_tensors(self.folder / file, dict(tensors))
        return {file: sha256_of_file(self.folder / file)}

    def admit(self, files: Mapping[str, str], *, save: bool) -> None:
        """Take finished files in, of this process or of another rank; the rank that `save`s writes the record."""
        self.files |= files
        if save:
            write_json(self.folder / _RECORD, self.files)

    def matrix(self, ladder: Ladder, format_: str, name: str, columns: int) -> Tensor:
        """(R, C) float32: a matrix as an engine reads it back.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        file = _file(ladder, format_)
        if file not in self.files:
            raise DamagedFileError(f"'{self.folder / file}' is missing. Run `darwinlm search` again, which makes it.")
        return restored(self._tensors.read(self.folder / file, self.files[file], name), format_, columns)


def _file(ladder: Ladder, format_: str) -> str:
    return f"{format_}/{ladder.name}.safetensors"
