"""What a refit changes, on disk: a safetensors file a block, and a record of how every matrix ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from darwinlm.errors import DamagedFileError
from darwinlm.models.experts import put
from darwinlm.models.sites import layer_of, layer_prefix
from darwinlm.runtime import ranks
from darwinlm.runtime.files import read_json, read_tensors, sha256_of_file, write_json, write_tensors

RECORD = "refit.json"


@dataclass(frozen=True)
class MatrixRefit:
    """How the refit of one output matrix ended."""

    damping: float | None
    """The one that was taken; None where the matrix stays as it was, since none lowered the error."""
    before: float
    """Mean over checked tokens of |E|^2, what the residual stream lacks behind the module; outlying tokens weigh less."""
    after: float
    """The same with the matrix that is kept."""
    exchanged: int = 0
    """Columns that others took the place of."""


class Refits:
    """The refitted output matrices of one model on disk: a safetensors file a block, and a record of all.

    Args:
        folder: where they lie; None for this process's memory alone.
        identity: what they are made from; what lies there and is made from something else counts for nothing.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self._held: dict[int, dict[str, Tensor]] = {}
        stored = read_json(folder / RECORD) if folder and (folder / RECORD).exists() else {}
        same = stored.get("identity") == identity
        self.files: dict[str, str] = stored["files"] if same else {}
        self.kl: dict[int, float] = {int(depth): kl for depth, kl in stored["kl"].items()} if same else {}
        """First layers that have their refit -> KL to the dense model, on tokens that nothing was fitted to; empty until it is
        judged."""
        self.judged_depth: int | None = stored["depth"] if same else None
        """First layers that the model is to have the refit of; None until it is judged."""
        self.matrices: dict[str, MatrixRefit] = (
            {name: MatrixRefit(**found) for name, found in stored["matrices"].items()} if same else {}
        )

    def __contains__(self, layer: int) -> bool:
        """Whether a block is finished and its file whole."""
        if self.folder is None:
            return layer in self._held
        path = self.folder / _file(layer)
        return path.is_file() and self.files.get(path.name) == sha256_of_file(path)

    def write(self, layer: int, weights: dict[str, Tensor], found: dict[str, MatrixRefit]) -> None:
        """Keep a finished block: its output matrices by their names within the layer, and how each ended."""
        self.matrices |= found
        self.kl, self.judged_depth = {}, None
        if self.folder is None:
            self._held[layer] = weights
        elif ranks.is_first():
            path = self.folder / _file(layer)
            write_tensors(path, weights)
            self.files[path.name] = sha256_of_file(path)
            self._save(self.folder)

    def keep_judged(self, kl: dict[int, float], depth: int) -> None:
        """Keep what the judge found: KL by the first layers that have their refit, and how many are to have it."""
        self.kl, self.judged_depth = kl, depth
        if self.folder is not None and ranks.is_first():
            self._save(self.folder)

    @property
    def depth(self) -> int:
        """First layers that the model is to have the refit of; all until it is judged."""
        return len(self._held or self.files) if self.judged_depth is None else self.judged_depth

    @property
    def kl_by_depth(self) -> str:
        """As it is shown."""
        return ", ".join(f"{depth}: {kl:.4f}" for depth, kl in self.kl.items())

    @property
    def before_and_after(self) -> tuple[float, float]:
        """KL without the refit, and with it as deep as the model is to have it."""
        return self.kl[0], self.kl[self.depth]

    def _save(self, folder: Path) -> None:
        matrices = {name: dataclasses.asdict(one) for name, one in self.matrices.items()}
        write_json(
            folder / RECORD,
            {
                "identity": self.identity,
                "kl": self.kl,
                "depth": self.judged_depth,
                "files": self.files,
                "matrices": matrices,
            },
        )

    def finished(self, layers: int) -> bool:
        """Whether all of so many blocks are, and judged."""
        return bool(self.kl) and all(layer in self for layer in range(layers))

    def read(self, layer: int) -> dict[str, Tensor]:
        """The output matrices of a finished block by their names within the layer.

        Raises:
            DamagedFileError: the file is missing or altered.
        """
        if self.folder is None:
            return self._held[layer]
        path = self.folder / _file(layer)
        if layer not in self:
            raise DamagedFileError(f"'{path}' is missing or damaged. Run `darwinlm refit` to make it again.")
        return read_tensors(path)[0]

    def load_into(self, model: nn.Module, layers: Iterable[int] | None = None) -> None:
        """Give an assembled model of the genome the refitted matrices, of `layers` or of those that are to have them."""
        for layer in range(self.depth) if layers is None else layers:
            for name, weight in self.read(layer).items():
                put(model, layer_prefix(layer) + name, weight)

    def put_into(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """(full name, tensor) of the model as it was, with the refitted matrices in their places."""
        layer, refitted = None, {}
        for name, tensor in tensors:
            if (here := layer_of(name)) != layer and here is not None:
                layer, refitted = here, self.read(here) if here < self.depth else {}
            yield name, tensor if here is None else refitted.get(name.removeprefix(layer_prefix(here)), tensor)


def _file(layer: int) -> str:
    return f"layer-{layer}.safetensors"
