"""Settings of predictions: on which machine, and how much of its rate is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True)
class Accelerator:
    """Peaks of one device as its maker states them: dense products, without sparsity."""

    bfloat16_tflops: float
    float32_tflops: float
    memory_gb: float
    terabytes_per_second: float
    """Of its memory."""


UPLOAD = 10e9
"""Bytes in a second from host memory to a device, weights being gathered on the way."""
ACCELERATORS = {
    "A100": Accelerator(312, 19.5, 80, 2.04),
    "H100": Accelerator(989, 67, 80, 3.35),
    "H200": Accelerator(989, 67, 141, 4.8),
    "L40S": Accelerator(362, 91.6, 48, 0.864),
    "RTX4090": Accelerator(165, 82.6, 24, 1.01),
}


@dataclass(frozen=True)
class PlanConfig:
    """The machine that hours are predicted for."""

    device: Literal["A100", "H100", "H200", "L40S", "RTX4090"] | None = None
    """Kind of GPU: its peak rates and its memory. Without it hours are those of an H100, and memory that of this machine."""
    devices: Annotated[int, Ge(1)] = 8
    """How many of them work together."""
    utilisation: Annotated[float, Gt(0), Le(1)] = 0.4
    """Share of the peak rates that is reached: an assumption, which hours are inversely proportional to."""
    device_tflops: Annotated[float, Gt(0)] | None = None
    """Peak rate of bfloat16 products in TFLOP/s, where it is not the maker's."""

    @property
    def kind(self) -> str:
        """The kind of GPU that hours are predicted for."""
        return self.device or "H100"

    @property
    def bfloat16_flops(self) -> float:
        """Operations that a device does in a second, in bfloat16."""
        return (self.device_tflops or ACCELERATORS[self.kind].bfloat16_tflops) * 1e12 * self.utilisation

    @property
    def float32_flops(self) -> float:
        """Operations that a device does in a second, in float32."""
        return ACCELERATORS[self.kind].float32_tflops * 1e12 * self.utilisation

    @property
    def bytes_per_second(self) -> float:
        """What a device reads and writes in its own memory."""
        return ACCELERATORS[self.kind].terabytes_per_second * 1e12 * self.utilisation

    @property
    def memory_bytes(self) -> int:
        """Memory of a device."""
        return int(ACCELERATORS[self.kind].memory_gb * 1e9)
