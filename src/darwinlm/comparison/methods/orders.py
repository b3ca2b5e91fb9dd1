"""Models without a refit: the units of every module leave in an order of its own, and what stays keeps its weights.

Letters: G = units (groups of columns) of a module, C = columns of its output matrix, R = hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.masks import output_of
from darwinlm.comparison.methods.task import Task
from darwinlm.database.levels import Ladder
from darwinlm.database.store import NO_HESSIAN, Database, ModuleRecord
from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import read_tensors, write_tensors

FILE = "orders.safetensors"
_ORDER, _BIAS = "order.", "bias."


class Orders(Database):
    """Levels that lie nowhere: what an order leaves of a checkpoint's own output matrices.

    Args:
        source: the checkpoint.
        ladders: its modules.
        orders: {module: (G,) int64, its units as they leave}.
    """

    def __init__(self, source: ModelSource, ladders: Sequence[Ladder], orders: Mapping[str, Tensor]) -> None:
        super().__init__(source.folder, {})
        self.orders, self._source, self._orders = orders, source, dict(orders)
        self.modules = {l.name: ModuleRecord(l, "", "", 0, [], [], **NO_HESSIAN) for l in ladders}

    def weight(self, name: str, level: int) -> Tensor:
        """(R, k): the columns that a level keeps, as they were."""
        ladder = self.modules[name].ladder
        output = self._source.family.output(ladder.layer, ladder.kind)
        return self._source.tensors([output])[output].index_select(1, self.kept(name, level))


def removal_orders(ladders: Sequence[Ladder], *scores: Sequence[Tensor]) -> dict[str, Tensor]:
    """{module: its units in the order they leave}: the least score first, and of equal ones the least of the next.

    Args:
        ladders: of the modules; where one has rounds, every run of neighbours loses a unit before any loses another.
        scores: of each kind of score (G,) for every module.
    """
    return {l.name: torch.tensor(removal_order(l, *own)) for l, *own in zip(ladders, *scores, strict=True)}


def removal_order(ladder: Ladder, *scores: Tensor) -> list[int]:
    """The units of one module as `removal_orders` has them; scores are (G,)."""
    listed = list(zip(*(score.tolist() for score in scores), range(len(scores[0]))))
    if ladder.rounds is None:
        return [unit for *_, unit in sorted(listed)]
    run = len(listed) // ladder.rounds
    runs = [sorted(listed[first : first + run]) for first in range(0, len(listed), run)]
    return [unit for turn in zip(*runs) for *_, unit in sorted(turn)]


def write_orders(folder: Path, orders: Mapping[str, Tensor], biases: Mapping[str, Tensor] | None = None) -> None:
    """Keep orders, and biases (R,) of output matrices where a method adds any."""
    named = {_ORDER + name: order for name, order in orders.items()}
    write_tensors(folder / FILE, named | {_BIAS + name: bias for name, bias in (biases or {}).items()})


def ordered_model(
    task: Task, genome: Genome, device: torch.device, dtype: torch.dtype, source: ModelSource | None = None
) -> Any:
    """The model that `write_orders` in the task's folder tells of, with weights of its own.

    Args:
        task: the one that was solved.
        genome: the answer.
        device: where the model is to lie.
        dtype: of its weights.
        source: whose weights they are; by default the model that is pruned.

    Raises:
        DamagedFileError: the file is not there, or not whole.
    """
    folder, source = source.folder if source else task.folder, source or task.assembler.source
    try:
        stored, _ = read_tensors(folder / FILE)
    except DamagedFileError as fault:
        raise DamagedFileError(f"{fault} Delete '{task.folder}' to have this method's result made again.") from fault
    orders = {name.removeprefix(_ORDER): tensor for name, tensor in stored.items() if name.startswith(_ORDER)}
    ladders = task.space.ladders
    model = Assembler(source, Orders(source, ladders, orders)).model(genome, device, dtype)
    for ladder in ladders:
        if (bias := stored.get(_BIAS + ladder.name)) is not None:
            output_of(model, ladder).bias = nn.Parameter(bias.to(device, dtype))
    return model
