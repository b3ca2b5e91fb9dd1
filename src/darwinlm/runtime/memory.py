"""Whether predicted work fits into the memory that is there: found before the work, as with disks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from darwinlm.errors import RequestError, first_line
from darwinlm.runtime import placement, ranks
from darwinlm.runtime.files import size

_NO_MEMORY = "can't allocate memory"
"""PyTorch's words, on a CPU."""


@dataclass(frozen=True)
class Need:
    """What a stage takes at its peak, in bytes."""

    what: str
    """The stage, as the subject of a sentence."""
    device: int
    """On the device that computes, of each rank; where that is the CPU, in host memory."""
    host: int = 0
    """In host memory beside a GPU, of each rank."""
    remedies: tuple[str, ...] = ()
    """What takes less, each such as `lower search.batch_sequences`."""


def free_bytes(device: torch.device) -> int | None:
    """Memory that this rank can take on a device; None where the system does not tell."""
    try:
        return placement.free_memory(device, ranks.local_world_size())
    except (OSError, ValueError, ImportError, AttributeError, RuntimeError, AssertionError):  # odd systems
        return None


def misfits(needs: Iterable[Need], place: str, device: int | None, host: int | None) -> list[str]:
    """A sentence for every stage that does not fit.

    Args:
        needs: of the stages.
        place: where they compute, such as `this GPU`.
        device: bytes that are free there; None where that is not known.
        host: bytes of host memory for each rank beside a GPU; None where that is not known or there is none.
    """
    found = []
    for need in needs:
        for asked, free, where in ((need.device, device, place), (need.host, host, "the host of each rank")):
            if free is not None and asked > free:
                remedies = ", ".join((*need.remedies, "or take a machine with more memory"))
                found.append(
                    f"{need.what} needs {size(asked)} of memory on {where}, but {size(free)} are there. To make it fit, {remedies}."
                )
    return found


def require_memory(needs: Iterable[Need], device: torch.device) -> None:
    """Check that stages fit here.

    Raises:
        RequestError: they do not; says what each needs, what is there, and what takes less.
    """
    on_gpu = device.type != "cpu"
    place, host = (f"'{device}'", free_bytes(torch.device("cpu"))) if on_gpu else ("this machine", None)
    if found := misfits(needs, place, free_bytes(device), host):
        raise RequestError(*found)


def out_of_memory(fault: BaseException) -> str | None:
    """One sentence for the ways in which memory ends; None for other faults."""
    text = next((line.strip() for line in str(fault).splitlines() if _NO_MEMORY in line), "")
    if text or isinstance(fault, MemoryError | torch.OutOfMemoryError):
        text = text or first_line(fault)
        return f"memory ran out ({text}). Use smaller batches or shorter sequences; the same command goes on from here."
    return None
