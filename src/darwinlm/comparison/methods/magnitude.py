"""Units leave by the norm of their columns in the output matrix, least first, and nothing is refitted."""

from __future__ import annotations

from torch import Tensor

from darwinlm.comparison.methods.orders import removal_orders, write_orders
from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome
from darwinlm.models.source import ModelSource


def magnitude(task: Task) -> Genome:
    """Every module at the share; the orders lie in the task's folder."""
    ladders = task.space.ladders
    source = task.assembler.source
    norms = [column_norms(source, source.family.output(l.layer, l.kind), l.group_size) for l in ladders]
    write_orders(task.folder, removal_orders(ladders, norms))
    return task.uniform


def column_norms(source: ModelSource, output: str, group_size: int) -> Tensor:
    """(G,) norms of the groups of columns of a matrix."""
    return source.tensors([output])[output].double().unflatten(1, (-1, group_size)).norm(dim=(0, 2))
