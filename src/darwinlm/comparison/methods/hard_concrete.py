"""The hard concrete distribution (arXiv 1712.01312): gates between 0 and 1 that are often exactly 0 or 1.

A uniform u becomes s = sigmoid((log u - log(1 - u) + log alpha) / beta), is stretched to (gamma, zeta) and cut to [0, 1].
So the gate is differentiable in log alpha, and the probability that it is open at all has a closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA, ZETA = -0.1, 1.1
"""Where the distribution is stretched to."""
BETA = 2 / 3
"""Its temperature."""


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates in [0, 1] for uniform numbers in (0, 1), element by element (eq. 10 and 11 there)."""
    return _stretched((uniform.log() - (-uniform).log1p() + log_alpha) / BETA)


def openness(log_alpha: Tensor) -> Tensor:
    """P(gate > 0), whose sum is the expected number of open gates (eq. 12 there)."""
    return (log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid()


def at_rest(log_alpha: Tensor) -> Tensor:
    """The gate that stands for the distribution once it is learned (eq. 13 there)."""
    return _stretched(log_alpha)


def draw(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """`sample` with uniform numbers from a generator on the CPU: the same on every device."""
    uniform = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    return sample(log_alpha, uniform.to(log_alpha))


def _stretched(logit: Tensor) -> Tensor:
    return (logit.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
