"""What one module puts out at each of its levels where a genome stands, and what that moves along a gradient.

Letters: s = sequences of a batch, T = tokens in a sequence, C = columns of the output matrix, R = its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from darwinlm.assemble import Assembler
from darwinlm.models.stock import Block


class ModuleLevels:
    """The output matrix of one module at all its levels.

    Args:
        assembler: the levels.
        place: of the module in a genome.
        level: where it stands.
        block: that holds it.
    """

    def __init__(self, assembler: Assembler, place: int, level: int, block: Block) -> None:
        self.ladder, self.level = assembler.space.ladders[place], level
        self.linear: Any = block.output_matrix(self.ladder.kind)
        post_norm = block.family.site(self.ladder.kind).post_norm
        self.norm = block.layer.get_submodule(post_norm) if post_norm else None
        """What the outputs pass through on their way into the residual stream; changes are counted behind it."""
        _, self.bias = assembler.output_matrix(self.ladder)
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        for rung in range(self.ladder.present, self.ladder.top):
            weight, kept = assembler.output(self.ladder, rung)
            self.weights[rung] = (weight.to(self.linear.weight), kept.to(self.linear.weight.device))
        name = block.family.site(self.ladder.kind).module
        self.module = block.layer.get_submodule(name)
        self.fronts: dict[str, dict[str, Tensor]] = {self.ladder.format(level): {}}
        """Of each format the matrices in front of the output matrix, by their names within the module; none of the present one."""
        for format_ in self.ladder.formats:
            if format_ not in self.fronts:
                matrices = assembler.in_front(self.ladder, format_).items()
                self.fronts[format_] = {n.removeprefix(f"{name}."): t.to(self.linear.weight) for n, t in matrices}

    def watched(self, note: Callable[[Tensor | None, Tensor | None], None]) -> list[Any]:
        """Hooks that tell of the output matrix's inputs, and of what the module puts out."""
        fed = self.linear.register_forward_hook(lambda _, x, y: note(x[0], None if self.norm else y))  # type: ignore[arg-type]
        put_out: Callable[..., None] = lambda _, x, y: note(None, y)  # noqa: E731
        return [fed, self.norm.register_forward_hook(put_out)] if self.norm else [fed]

    def called(self) -> list[tuple[Any, Any]]:
        """Where the arguments of the module will be, once it was called; the list that comes back is filled once."""
        found: list[tuple[Any, Any]] = []

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            found.append((args, kwargs))
            hook.remove()

        hook = self.module.register_forward_pre_hook(note, with_kwargs=True)
        return found

    def in_formats(self, inputs: Tensor, called: list[tuple[Any, Any]]) -> dict[str, Tensor]:
        """(s, T, C) inputs of the output matrix as they are, and as they were if the module were in another format."""
        found = {format_: inputs for format_, changed in self.fronts.items() if not changed}
        fed: list[Tensor] = []
        hook = self.linear.register_forward_pre_hook(lambda _, x: fed.append(x[0]))
        for format_, changed in self.fronts.items():
            if changed:
                functional_call(self.module, changed, *called[0])
                found[format_] = fed[-1].detach()
        hook.remove()
        return found

    def moves(self, fed: dict[str, Tensor], gradient: Tensor) -> Tensor:
        """Inputs (s, T, C) by format and (s, T, R) gradient at the outputs -> (s, T, levels): gradient . (output at a level -
        output now)."""
        found = gradient.new_zeros(*gradient.shape[:2], self.ladder.top + 1)  # what is gone puts out nothing
        for number, (weight, kept) in self.weights.items():
            inputs = fed[self.ladder.format(number)].index_select(-1, kept)
            if self.norm is None:
                found[..., number] = ((gradient.to(weight) @ weight) * inputs).sum(-1, dtype=torch.float32)
                if self.bias is not None:
                    found[..., number] += gradient @ self.bias.to(gradient)
            else:  # it does not see how large its inputs are: each level's outputs go through it
                outputs = inputs.to(weight) @ weight.T
                outputs = self.norm(outputs if self.bias is None else outputs + self.bias.to(outputs))
                found[..., number] = (gradient.to(outputs) * outputs).sum(-1, dtype=torch.float32)
        return found - found[..., self.level, None]
