"""What a checkpoint comes from: the runs behind it, what they fitted to, and what they hold apart.

One rule for every command. Text that a run scores is held apart by all that is made from its checkpoint: on the same data
they score those very blocks, and no pool or training stream contains them, whatever the data are called. On other data,
blocks that share text with what the runs were calibrated, trained or selected on are never scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from darwinlm.data.sources import same_source
from darwinlm.data.tokens import Ranges
from darwinlm.runtime.files import read_tensors
from darwinlm.runtime.rundir import RunDirectory

FITTED = ("hessian", "train", "select")
RANGES = "held_out_ranges"
"""Name in `blocks.safetensors` of where the held-out blocks come from; runs that scored a text apart have none."""
FOLDER = "folder"
"""Name in its metadata of the working folder of the run: from there relative names in its settings count."""


@dataclass(frozen=True)
class Scored:
    """Held-out blocks."""

    blocks: Tensor
    """(blocks, tokens) int64."""
    ranges: Ranges
    """Where they come from."""


@dataclass(frozen=True)
class Ancestor:
    """A run that a checkpoint comes from."""

    folder: Path
    settings: dict

    @cached_property
    def _blocks(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return read_tensors(self.folder / "blocks.safetensors")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its token blocks."""
        return self._blocks[0]

    def named(self, setting: str) -> str:
        """Its `model` or `data`; of a file or folder, the path from where the run was made."""
        name = str(self.settings.get(setting) or "")
        path = Path(self._blocks[1].get(FOLDER, ""), Path(name).expanduser())
        return str(path) if name and path.exists() else name

    @property
    def scored(self) -> Scored:
        """What it scores."""
        return Scored(self.tensors["held_out"].long(), Ranges(self.tensors.get(RANGES)))

    @property
    def is_training(self) -> bool:
        """A post-training: what it read is not kept."""
        return "hessian" not in self.tensors


class Lineage:
    """The runs behind a checkpoint, nearest first.

    Args:
        model: path or hub id; of what lies in no run, there are none.
        others: models that are scored beside it.
    """

    def __init__(self, model: str, *others: str) -> None:
        self.runs = list(_ancestors(model))
        known = {run.folder: run for run in self.runs}
        self.others = [run for other in others for run in _ancestors(other) if known.setdefault(run.folder, run) is run]

    def scored(self, data: str) -> Scored | None:
        """The held-out blocks of the nearest run on the same data, or of the nearest one where no data are named."""
        same = (run for run in self.runs if not data or same_source(run.named("data"), data))
        nearest = next(same, None)
        return nearest.scored if nearest else None

    @cached_property
    def ranges(self) -> Ranges:
        """All that the runs hold apart."""
        total = Ranges()
        for run in self.runs:
            total += run.scored.ranges
        return total

    @cached_property
    def fitted(self) -> list[Tensor]:
        """The blocks that the runs were calibrated, trained or selected on in their search."""
        return _fitted(self.runs) + self.fitted_by_others

    @cached_property
    def fitted_by_others(self) -> list[Tensor]:
        """What only runs of the models beside were."""
        return _fitted(self.others)

    @property
    def trained_on(self) -> list[str]:
        """The data of post-trainings: text of which it is not known whether they read it."""
        return list(dict.fromkeys(str(run.settings.get("data")) for run in self.runs + self.others if run.is_training))


def _fitted(runs: list[Ancestor]) -> list[Tensor]:
    return [run.tensors[name].long() for run in runs for name in FITTED if name in run.tensors]


def _ancestors(model: str) -> Iterator[Ancestor]:
    visited: set[Path] = set()
    while model and (folder := Path(model).expanduser()).is_dir():
        run = next((parent for parent in folder.resolve().parents[:4] if _is_run(parent)), None)
        if run is None or run in visited:
            return
        visited.add(run)
        ancestor = Ancestor(run, RunDirectory(run).settings())
        yield ancestor
        model = ancestor.named("model")


def _is_run(folder: Path) -> bool:
    directory = RunDirectory(folder)
    return directory.config.exists() and directory.blocks.exists()
