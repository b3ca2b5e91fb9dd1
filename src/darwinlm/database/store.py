"""The level database on disk: one safetensors file per module holding kept columns only, and a manifest.

A file holds `order` (groups in the order they left, int64) and `level.<i>.weight` (R, kept columns) for every level
between what the module is now and gone. Levels are nested, so the order alone says which columns each of them keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.database.levels import Ladder
from darwinlm.database.obs import PrunedLevel
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.models.family import place_of
from darwinlm.runtime.files import CheckedTensors, read_json, sha256_of_file, write_json, write_tensors

FORMAT = 1
NO_HESSIAN: dict[str, Any] = {"damping": 0.0, "dead_columns": 0, "rel_damp": 0.0}
"""What the record of a module says that no Hessian was made for."""
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ModuleRecord:
    """What the manifest says of one module."""

    ladder: Ladder
    file: str
    sha256: str
    bytes: int
    errors: list[float]
    """tr(dW H dW^T) at each level, with the damped Hessian; 0 at those that are closed."""
    relative_errors: list[float]
    """The same over tr(W H W^T): 0 is dense, 1 is gone."""
    damping: float
    """What was added to the diagonal of the Hessian."""
    dead_columns: int
    """Columns that no calibration token activated."""
    rel_damp: float | None = None
    """`damping` over the mean of the diagonal; None in older databases."""
    precision: str = "float32"
    """Of the arithmetic."""
    held_out_errors: dict[str, float] = field(default_factory=dict)
    """Relative errors on the tokens held back, by relative damping; empty where it was not chosen by them."""
    orders: dict[str, float] = field(default_factory=dict)
    """Of a mixture of experts: the same by way of ordering its experts; the least one was taken."""
    rare: dict[str, int] = field(default_factory=dict)
    """Experts that fewer tokens take than they have columns, and how many do: their Hessians are damped the more."""


def _ladder(values: dict[str, Any]) -> Ladder:
    rungs = tuple((experts, width) for experts, width in values.get("rungs", ()))
    return Ladder(**{**values, "removed": tuple(values["removed"]), "rungs": rungs})


class Database:
    """The levels of every module of one model.

    Args:
        folder: where it lies.
        identity: what it was, or is to be, made from: model, data, settings.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = identity
        self.modules: dict[str, ModuleRecord] = {}
        self._orders: dict[str, Tensor] = {}
        self._tensors = CheckedTensors("Run `darwinlm database` with --rebuild.")

    @classmethod
    def open(cls, folder: Path) -> Database:
        """The database in a folder, whole or begun.

        Raises:
            DamagedFileError: the manifest is missing or unreadable.
        """
        manifest = read_json(folder / MANIFEST)
        try:
            if manifest["format"] != FORMAT:
                raise RequestError(f"'{folder}' was made by another version of DarwinLM (format {manifest['format']}).")
            database = cls(folder, manifest["identity"])
            for record in manifest["modules"]:
                ladder = _ladder(record["ladder"])
                database.modules[ladder.name] = ModuleRecord(**{**record, "ladder": ladder})
        except (KeyError, TypeError) as fault:
            raise DamagedFileError(
                f"'{folder / MANIFEST}' is damaged: {fault}. Build the database anew in another --output."
            ) from fault
        return database

    def write(self, ladder: Ladder, levels: Iterable[PrunedLevel], dtype: torch.dtype, **facts: Any) -> ModuleRecord:
        """Write one module's open levels, none of a module that was gone before; `facts` are the record's own.

        The record that it returns is not in the manifest before it is admitted.
        """
        tensors = {"order": torch.empty(0, dtype=torch.int64)}
        errors = [0.0] * ladder.present
        for number, level in enumerate(levels, start=ladder.present):
            errors.append(level.error)
            if ladder.present < number < ladder.top:
                tensors[f"level.{number}.weight"] = level.weight.to("cpu", dtype)
            tensors["order"] = torch.tensor(level.removed, dtype=torch.int64)
        file = f"{ladder.name}.safetensors"
        write_tensors(self.folder / file, tensors)
        return ModuleRecord(
            ladder=ladder,
            file=file,
            sha256=sha256_of_file(self.folder / file),
            bytes=(self.folder / file).stat().st_size,
            errors=errors,
            relative_errors=[error / errors[-1] if errors and errors[-1] else 0.0 for error in errors],
            **facts,
        )

    def admit(self, records: Iterable[ModuleRecord], *, save: bool = True) -> None:
        """Take finished modules in and write the manifest that names them.

        Args:
            records: from `write`, of this process or of another rank.
            save: False on the ranks that do not write the manifest.
        """
        self.modules |= {record.ladder.name: record for record in records}
        if not save:
            return
        modules = [dataclasses.asdict(self.modules[name]) for name in sorted(self.modules, key=place_of)]
        for module in modules:
            del module["ladder"]["formats"]  # the levels are the same in every one
        write_json(self.folder / MANIFEST, {"format": FORMAT, "identity": self.identity, "modules": modules})

    def damaged(self, *, thorough: bool = False) -> list[str]:
        """Names of the modules whose file is missing or has another size.

        Args:
            thorough: read every file whole and find what is altered, too. Otherwise that is found when a module is used.
        """
        return [name for name, record in self.modules.items() if not self._is_whole(record, thorough)]

    def _is_whole(self, record: ModuleRecord, thorough: bool) -> bool:
        path = self.folder / record.file
        sized = path.is_file() and path.stat().st_size == record.bytes
        return sized and (not thorough or sha256_of_file(path) == record.sha256)

    def ladders(self) -> list[Ladder]:
        """The ladders in the order of the model."""
        return [self.modules[name].ladder for name in sorted(self.modules, key=place_of)]

    def kept(self, name: str, level: int) -> Tensor:
        """(k,) int64: columns of the output matrix that a level keeps, ascending."""
        ladder = self.modules[name].ladder
        if name not in self._orders:
            self._orders[name] = self._read(name, "order")
        gone = self._orders[name][: ladder.removed[level]]
        stays = torch.ones(ladder.columns // ladder.group_size, dtype=torch.bool)
        stays[gone] = False
        return stays.repeat_interleave(ladder.group_size).nonzero().flatten()

    def weight(self, name: str, level: int) -> Tensor:
        """(R, k): the refitted output matrix of a level between what the module is now and gone."""
        return self._read(name, f"level.{level}.weight")

    def _read(self, name: str, tensor: str) -> Tensor:
        record = self.modules[name]
        return self._tensors.read(self.folder / record.file, record.sha256, tensor)


def damaged_files(database: Database, modules: list[str]) -> DamagedFileError:
    """The fault of a database whose files are not all whole."""
    files = ", ".join(f"'{database.folder / database.modules[name].file}'" for name in modules)
    return DamagedFileError(
        f"Missing or damaged in the database: {files}. Run `darwinlm database` with --rebuild to make these modules again."
    )
