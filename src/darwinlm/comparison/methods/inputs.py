"""What the output matrices of the dense model are fed on the text of a comparison, block by block.

Letters: S = sequences, T = tokens in a sequence, C = columns of an output matrix.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from darwinlm.comparison.methods.layers import SEQUENCES
from darwinlm.comparison.methods.task import Task
from darwinlm.runtime.progress import progress


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
                    block.output_matrix(ladder.kind).register_forward_pre_hook(_telling(see, ladder.name))
            stream.forward(block, hidden, SEQUENCES)
            advance(f"layer {layer}")


def _telling(see: Callable[[str, Tensor], None], name: str):
    return lambda matrix, arguments: see(name, arguments[0])
