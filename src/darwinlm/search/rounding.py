"""AdamW on bfloat16 weights with stochastic rounding, one parameter at a time, inside the backward pass.

At a learning rate of 1e-5 most updates are below half a step of a bfloat16 weight, and rounding to the nearest loses
them all; rounding up or down with the right odds keeps them on average. Weights, gradients and both moments take two
bytes each, and a gradient lives only until its parameter has moved: 6 bytes a parameter in all, against 16 in float32.

Own code, since the known low-precision optimizers draw from global random state and compile every shape anew, while a
search has candidates of many shapes and must give the same answer always.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.999), 1e-8
CHUNK = 1 << 24
"""Values of a parameter that are updated at a time, in float32."""


def round_stochastically(target: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Write float32 `values` into a bfloat16 `target` of their shape: up or down, in proportion to the nearness."""
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = values.contiguous().view(torch.int32) + noise  # a carry into the upper half rounds the magnitude up
    target.copy_(bits.bitwise_and_(-1 << 16).view(torch.float32))


class RoundedAdamW:
    """AdamW (arXiv 1711.05101) without weight decay whose steps happen as gradients arrive.

    Args:
        parameters: bfloat16, each stepped once per backward pass.
        learning_rate: of AdamW.
        generator: of the rounding, on the device of the parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, generator: torch.Generator) -> None:
        self.learning_rate, self.generator = learning_rate, generator
        self.moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self.steps: dict[nn.Parameter, int] = {}
        for parameter in parameters:
            self.moments[parameter] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
            self.steps[parameter] = 0
            parameter.register_post_accumulate_grad_hook(self._step)

    @torch.no_grad()
    def _step(self, parameter: Tensor) -> None:
        if not isinstance(parameter, nn.Parameter) or parameter.grad is None:
            raise RuntimeError("a step was asked for without a gradient")
        self.steps[parameter] += 1
        tensors = (parameter, parameter.grad, *self.moments[parameter])
        for weight, gradient, first, second in zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors)):
            self._update(weight, gradient.float(), first, second, self.steps[parameter])
        parameter.grad = None

    def _update(self, weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int) -> None:
        mean = first.float().lerp_(gradient, 1 - BETAS[0])
        square = second.float().lerp_(gradient.square_(), 1 - BETAS[1])
        round_stochastically(first, mean, self.generator)
        round_stochastically(second, square, self.generator)
        spread = square.div_(1 - BETAS[1] ** step).sqrt_().add_(EPS)
        moved = weight.float().addcdiv_(mean, spread, value=-self.learning_rate / (1 - BETAS[0] ** step))
        round_stochastically(weight, moved, self.generator)
