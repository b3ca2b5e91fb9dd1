"""What methods that drop whole layers share: genomes without some layers, and how many must go."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome, Space

SEQUENCES = 8
"""Blocks in one forward pass."""


def droppable(space: Space) -> list[int]:
    """Layers that still hold a module."""
    return sorted({ladder.layer for ladder in space.ladders})


def without_layers(space: Space, layers: Collection[int]) -> Genome:
    """The dense genome, but these layers are gone."""
    return tuple(ladder.top if ladder.layer in layers else 0 for ladder in space.ladders)


def drop_in_order(task: Task, layers: Sequence[int]) -> Genome:
    """Drop the first layers of `layers`: as few as bring the parameters within the budget."""
    genomes = (without_layers(task.space, layers[:count]) for count in range(1, len(layers) + 1))
    return next(genome for genome in genomes if task.parameters(genome) <= task.budget)
