"""What methods share: genomes without some layers, and what the output matrices of the dense model are fed.

Letters: S = sequences, T = tokens in a sequence, C = columns of an output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome, Space
from darwinlm.runtime.progress import progress

SEQUENCES = 8
"""Blocks in one forward pass."""


def without_layers(space: Space, layers: Collection[int]) -> Genome:
    """The dense genome, but these layers are gone."""
    return tuple(ladder.top if ladder.layer in layers else 0 for ladder in space.ladders)


def drop_in_order(task: Task, layers: Sequence[int]) -> Genome:
    """Drop the first layers of `layers`: as few as bring the parameters within the budget."""
    genomes = (without_layers(task.space, layers[:count]) for count in range(1, len(layers) + 1))
    return next(genome for genome in genomes if task.parameters(genome) <= task.budget)


def watch_inputs(task: Task, see: Callable[[str, Tensor], None]) -> None:
    """Pass all of the text through the dense model.

    Args:
        task: its model and its text.
        see: gets the name of a module and what its output matrix is fed, (S, T, C), of every batch in turn.
    """
    stream, hidden = task.stream, task.stream.embed(task.teacher.tokens)
    with progress("Activations", total=len(stream)) as advance:
        for layer, block in enumerate(stream.blocks()):
            for ladder in task.space.ladders:
                if ladder.layer == layer:
                    block.output_matrix(ladder.kind).register_forward_pre_hook(
                        lambda _, x, name=ladder.name: see(name, x[0])  # type: ignore[arg-type]
                    )
            stream.forward(block, hidden, SEQUENCES)
            advance(f"layer {layer}")
