"""Gates on what can leave a model: on every unit (head, KV group, MLP column) and on every module as a whole.

A unit's gate multiplies its columns of the module's output matrix, a module's gate multiplies what the module adds to the
residual stream, bias included. So a closed gate is exactly a removed unit or module, in any family.

Letters: M = modules, G = units of a module, K = kinds of module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.comparison.methods.hard_concrete import at_rest, draw, openness
from darwinlm.database.levels import Ladder
from darwinlm.genome import Space
from darwinlm.models.head import family_of_model

START = 2.5
"""Log alpha of every gate at first: nearly all are open."""
BOUND = 4.6
"""Log alpha stays within this: beyond it no gradient would bring a gate back."""


@dataclass(frozen=True)
class Gates:
    """One value for every gate."""

    units: list[Tensor]
    """(G,) for each module."""
    modules: Tensor
    """(M,)"""


class Masks:
    """The distributions of all gates of a model.

    Args:
        ladders: the modules, whose groups are the units.
        device: where the model computes.
    """

    def __init__(self, ladders: Sequence[Ladder], device: torch.device) -> None:
        counts = [ladder.columns // ladder.group_size for ladder in ladders]
        self.units = [torch.full((count,), START, device=device, requires_grad=True) for count in counts]
        self.modules = torch.full((len(ladders),), START, device=device, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        """Log alpha of all gates."""
        return [*self.units, self.modules]

    def kept(self) -> Tensor:
        """(M,): expected share of every module's units that are open in an open module, differentiable."""
        return openness(self.modules) * torch.stack([openness(unit).mean() for unit in self.units])

    def draw(self, generator: torch.Generator) -> Gates:
        """Gates drawn at random, differentiable in log alpha."""
        return Gates([draw(unit, generator) for unit in self.units], draw(self.modules, generator))

    @torch.no_grad()
    def at_rest(self) -> Gates:
        """The gates after the training."""
        return Gates([at_rest(unit) for unit in self.units], at_rest(self.modules))

    @torch.no_grad()
    def bound(self) -> None:
        """Bring log alpha back within its bound."""
        for parameter in self.parameters():
            parameter.clamp_(-BOUND, BOUND)


class Constraints:
    """Lagrange multipliers that pull the kept share of every kind of module to a target (arXiv 2310.06694, section 3.1).

    A module counts by its steps, so that the share is the kept part of the kind's sum of levels.

    Args:
        space: the modules.
        share: part of every kind that is to go.
        device: where the masks lie.
    """

    def __init__(self, space: Space, share: float, device: torch.device) -> None:
        kinds, targets = space.kinds, space.targets(share)
        steps = torch.tensor([[l.top * (l.kind == kind) for l in space.ladders] for kind in kinds], dtype=torch.float32)
        self.mean = (steps / steps.sum(1, keepdim=True)).to(device)  # (K, M)
        self.gone = torch.tensor([targets[kind] for kind in kinds]).to(device) / steps.sum(1).to(device)  # (K,)
        self.linear = torch.zeros(len(kinds), device=device, requires_grad=True)
        self.square = torch.zeros(len(kinds), device=device, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        """The multipliers, to be raised along their gradient."""
        return [self.linear, self.square]

    def penalty(self, kept: Tensor, progress: float) -> Tensor:
        """linear (s - t) + square (s - t)^2 over the kinds, with s the kept share and t its target.

        Args:
            kept: (M,) share of every module.
            progress: of the target on its way from the dense model, 0 to 1.
        """
        excess = self.mean @ kept - (1 - progress * self.gone)
        return (self.linear * excess + self.square * excess.square()).sum()


@contextmanager
def gated(model: Any, ladders: Sequence[Ladder], gates: Gates) -> Iterator[None]:
    """Let a model compute with gates, as long as the context lasts."""
    with ExitStack() as hooks:
        for ladder, units, module in zip(ladders, gates.units, gates.modules, strict=True):
            matrix, columns = output_of(model, ladder), units.repeat_interleave(ladder.group_size)
            hooks.enter_context(matrix.register_forward_pre_hook(lambda _, x, by=columns: (x[0] * by.to(x[0].dtype),)))
            hooks.enter_context(matrix.register_forward_hook(lambda _, x, y, by=module: y * by.to(y.dtype)))  # type: ignore[attr-defined]
        yield


@torch.no_grad()
def fold(model: Any, ladders: Sequence[Ladder], gates: Gates) -> None:
    """Multiply gates into the output matrices for good: without them the model then computes what it did with them."""
    for ladder, units, module in zip(ladders, gates.units, gates.modules, strict=True):
        matrix = output_of(model, ladder)
        matrix.weight.mul_(units.repeat_interleave(ladder.group_size)).mul_(module)
        if matrix.bias is not None:
            matrix.bias.mul_(module)


def output_of(model: Any, ladder: Ladder) -> nn.Linear:
    """The output matrix of a module of a whole model."""
    name = family_of_model(model).output(ladder.layer, ladder.kind)
    return model.get_submodule(name.removesuffix(".weight"))
