"""The levels of a database in formats, on disk beside it: a folder a format, with a safetensors file a module.

A file holds, as `formats.rounding.stored` packs them, the matrices in front of the output matrix, whole, by their names within
the layer, and as `level.<i>` the output matrix of every level from what the module is now to the last that is not gone,
padding included.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from darwinlm.config import ROUNDED
from darwinlm.database.levels import Ladder
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError
from darwinlm.formats.rounding import restored
from darwinlm.runtime.files import CheckedTensors, read_json, sha256_of_file, write_json, write_tensors

_RECORD = "rounded.json"
_REMEDY = "Remove it; `darwinlm search`, `prune` and `compare` make it anew."


class RoundedLevels:
    """What lies there of a database's levels in formats.

    Args:
        database: finished.
    """

    def __init__(self, database: Database) -> None:
        self.database, self.folder, record = database, database.folder, database.folder / _RECORD
        try:
            self.files: dict[str, list[str]] = read_json(record) if record.exists() else {}
            """Of every finished file, beneath the folder, its SHA-256, that of the module it was made from, and how."""
        except DamagedFileError as fault:
            raise DamagedFileError(f"{fault} {_REMEDY}") from fault
        self._tensors = CheckedTensors(_REMEDY)

    def holds(self, ladder: Ladder, format_: str) -> bool:
        """Whether a module as it is in the database is finished in a format."""
        file = _file(ladder, format_)
        return self.files.get(file, [])[1:] == self._made_from(ladder) and (self.folder / file).is_file()

    def _made_from(self, ladder: Ladder) -> list[str]:
        return [self.database.modules[ladder.name].sha256, ROUNDED]

    def write(self, ladder: Ladder, format_: str, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Write one module in a format; returns what is to be admitted."""
        file = _file(ladder, format_)
        write_tensors(self.folder / file, dict(tensors))
        return {file: [sha256_of_file(self.folder / file), *self._made_from(ladder)]}

    def admit(self, files: Mapping[str, list[str]], *, save: bool) -> None:
        """Take finished files in, of this process or of another rank; the rank that `save`s writes the record."""
        self.files |= files
        if save:
            write_json(self.folder / _RECORD, self.files)

    def matrix(self, ladder: Ladder, format_: str, name: str, columns: int) -> Tensor:
        """(R, C) float32: a matrix as an engine reads it back.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        path = self.folder / _file(ladder, format_)
        if not self.holds(ladder, format_):
            raise DamagedFileError(f"'{path}' is missing, or of another database. {_REMEDY}")
        return restored(self._tensors.read(path, self.files[_file(ladder, format_)][0], name), format_, columns)

    def require_whole(self) -> None:
        """Read all files that lie there.

        Raises:
            DamagedFileError: some are altered; names them.
        """
        paths = {self.folder / file: known[0] for file, known in self.files.items()}
        if altered := [
            f"'{path}'" for path, sha256 in paths.items() if path.is_file() and sha256_of_file(path) != sha256
        ]:
            raise DamagedFileError(f"Damaged beside the database: {', '.join(altered)}. {_REMEDY}")


def _file(ladder: Ladder, format_: str) -> str:
    return f"{format_}/{ladder.name}.safetensors"
