"""Which device and dtype a run computes with, and how much memory it took."""

import os
import platform
import sys
import time
from pathlib import Path

import torch

from darwinlm.errors import RequestError, first_line


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one: under torchrun each rank has its own.

    A GPU that is chosen becomes the current one, so that what asks for no device by name works there, too; and float32
    products are float32 from here on, whatever the environment says. Apple's `mps` has no float64 and is refused.

    Raises:
        RequestError: no such device is here, or it cannot do the arithmetic.
    """
    torch.set_float32_matmul_precision("highest")  # containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" or "LOCAL_RANK" not in os.environ:
            return torch.device(name)
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(
            1, device=device, dtype=torch.float64
        ).item()  # also refuses the meta device, which holds no numbers
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError) as fault:
        reason = first_line(fault).split(" device type at start of", 1)[0]  # where torch lists all it has ever heard of
        reason = "no such device" if reason.startswith("Expected one of") else reason
        raise RequestError(
            f"Device '{name}' cannot be used ({reason}). Leave --device at auto, or choose cpu, cuda or cuda:1."
        ) from fault
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU, where bfloat16 is usually emulated."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def device_name(device: torch.device) -> str:
    """What the maker calls a device: two of one name are equally fast. Of one that is not here, its type."""
    if device.type != "cpu":
        return (
            torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else device.type
        )
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measured_rate(device: torch.device) -> float:
    """Operations a second of float32 products, as they are now: the best of a few, which take a fraction of a second."""
    matrix, taken = torch.randn(1024, 1024, device=device), []
    for _ in range(6):
        began = time.perf_counter()
        (matrix @ matrix).sum().item()
        taken.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(taken)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far by this process: on the GPU where one is used, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset")  # noqa: B009  not in other systems' type
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
