"""AdamW on bfloat16 weights with compensated sums, one parameter at a time, inside the backward pass.

At a learning rate of 1e-5 most updates are below half a step of a bfloat16 weight, and rounding to the nearest loses
them all. What is cut off a weight is kept beside it (Kahan), so the sum of both is right to 15 bits; and which of its
two neighbours the weight itself is, which the forward pass sees, is dithered by its place: even updates far below a step
move a matrix on average. A second moment moves by a thousandth a step, less than bfloat16 resolves, and is dithered by
place and step. Weight, rest and both moments take two bytes each, and a gradient lives only until its parameter has
moved: 8 bytes a parameter in all, against 16 in float32. Nothing is random: a step depends on the parameter and how many
came before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.999), 1e-8
CHUNK = 1 << 24
"""Values of a parameter that are updated at a time, in float32."""

_R2 = (-1052792407, -1847521883)
"""0.75488 and 0.56984 as fractions of 2^32, in signed numbers: they wrap around."""


def dithered(values: Tensor, step: int = 0) -> Tensor:
    """Float32 `values` (n,) cut to what bfloat16 holds: up or down, over places and steps as often as the nearness says.

    The dither is the R2 sequence of place and step (Roberts, 2018), which fills the unit interval evenly along both.
    """
    places = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    offset = (step * _R2[1] + (1 << 31)) % (1 << 32) - (1 << 31)
    dither = (places * _R2[0] + offset >> 16) & 0xFFFF
    cut = ((values.view(torch.int32) + dither) & -65536).view(torch.float32)  # a carry rounds the magnitude up
    return torch.where(values.isfinite(), cut, values)


@dataclass
class _State:
    rest: Tensor
    """What rounding cut off the weight."""
    first: Tensor
    second: Tensor
    steps: int = 0


class CompensatedAdamW:
    """AdamW (arXiv 1711.05101) without weight decay whose steps happen as gradients arrive, while this object lives.

    Args:
        parameters: bfloat16, each stepped once per backward pass.
        learning_rate: of AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.state: dict[nn.Parameter, _State] = {}
        this = weakref.ref(self)  # a hook that held its optimizer would keep both alive for ever, by way of C++

        def hook(parameter: Tensor) -> None:
            if (optimizer := this()) is not None and isinstance(parameter, nn.Parameter):
                optimizer.step(parameter)

        for parameter in parameters:
            rest, first, second = (torch.zeros_like(parameter) for _ in range(3))
            self.state[parameter] = _State(rest, first, second)
            parameter.register_post_accumulate_grad_hook(hook)

    @torch.no_grad()
    def step(self, parameter: nn.Parameter) -> None:
        """Move a parameter by its gradient, which is then gone."""
        if parameter.grad is None:
            raise RuntimeError("a step was asked for without a gradient")
        state = self.state[parameter]
        state.steps += 1
        tensors = (parameter, state.rest, parameter.grad, state.first, state.second)
        for weight, rest, gradient, first, second in zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors)):
            self._update(weight, rest, gradient.float(), first, second, state.steps)
        parameter.grad = None

    def tensors(self) -> list[Tensor]:
        """What is kept from step to step beside the parameters."""
        return [tensor for state in self.state.values() for tensor in (state.rest, state.first, state.second)]

    def _update(self, weight: Tensor, rest: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int) -> None:
        mean = first.float().lerp_(gradient, 1 - BETAS[0])
        square = second.float().lerp_(gradient.square_(), 1 - BETAS[1])
        first.copy_(mean)
        second.copy_(dithered(square, step))
        spread = square.div_(1 - BETAS[1] ** step).sqrt_().add_(EPS)
        moved = rest.float().addcdiv_(mean, spread, value=-self.learning_rate / (1 - BETAS[0] ** step)).add_(weight)
        weight.copy_(dithered(moved))
        rest.copy_(moved.sub_(weight))
