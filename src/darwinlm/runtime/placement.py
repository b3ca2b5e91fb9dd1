"""Where a large tensor lies: on the device, in (pinned) host memory, or in a file, by the room that there is."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.runtime.files import require_room
from darwinlm.runtime.progress import log

Place = Literal["auto", "device", "host", "disk"]
HOST_SHARE = 0.7
"""Share of the free host memory that one tensor may take before it goes to a file."""


@dataclass(frozen=True)
class Placement:
    """Says where tensors of a run go that no one else has to hold in memory."""

    device: torch.device
    """What computes."""
    folder: Path
    """Where files lie; they are gone with the process."""
    where: Place = "auto"
    """`auto` takes the first of device, host and disk that has the room."""
    reserve: int = 0
    """Bytes on the device that the work itself needs."""
    sharers: int = 1
    """Processes of this machine that place as much at the same time."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor where there is room for it.

        Raises:
            RequestError: nowhere is.
        """
        size = math.prod(shape) * dtype.itemsize
        where = self._choose(size) if self.where == "auto" else self.where
        where = where if size else "host"
        if where == "device":
            return torch.empty(*shape, dtype=dtype, device=self.device)
        if where == "host":
            return host_tensor(shape, dtype, pinned=self.device.type == "cuda")
        log.info("%.1f GB of hidden states go to a file in '%s'.", size / 1e9, self.folder)
        return self._in_a_file(shape, dtype, size)

    def _choose(self, size: int) -> Place:
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if size + self.reserve <= HOST_SHARE * free:
                return "device"
        return "host" if size * self.sharers <= HOST_SHARE * free_host_memory() else "disk"

    def _in_a_file(self, shape: Sequence[int], dtype: torch.dtype, size: int) -> Tensor:
        require_room(self.folder, size * self.sharers, "Hidden states in a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".hidden_states.{socket.gethostname()}.{os.getpid()}"  # nodes may share the folder
        try:
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is noticed now, not as a crash later
                    os.posix_fallocate(file.fileno(), 0, max(1, size))
                else:
                    file.truncate(size)
            return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(*shape)
        except (OSError, RuntimeError) as fault:
            raise RequestError(
                f"Cannot keep {size / 1e9:.2f} GB of hidden states in '{self.folder}': {fault}. Free some room, choose "
                "another --output, or calibrate on fewer tokens (blocks.hessian)."
            ) from fault
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # the memory map lives on; a killed run leaves no file


def host_tensor(shape: Sequence[int], dtype: torch.dtype, *, pinned: bool) -> Tensor:
    """An uninitialized tensor in host memory that takes what its values take, and gives it back when it is gone.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        pinned: for copies that run beside the host. torch's own pinned memory takes the next power of two, and is kept.
    """
    if not pinned or math.prod(shape) == 0:
        return torch.empty(*shape, dtype=dtype)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    tensor = torch.frombuffer(memory, dtype=dtype)
    runtime: Any = torch.cuda.cudart()
    if fault := int(runtime.cudaHostRegister(tensor.data_ptr(), len(memory), 0)):
        log.warning("Host memory cannot be pinned (CUDA error %d): copies to the GPU will be slower.", fault)
    else:
        weakref.finalize(memory, runtime.cudaHostUnregister, tensor.data_ptr())
    return tensor.view(*shape)


def free_memory(device: torch.device, sharers: int) -> int:
    """Bytes of a device's memory that can be taken; the host's is shared by so many processes."""
    if device.type != "cuda":
        return free_host_memory() // sharers
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that can be taken without swapping, and without being killed for it in a container.

    Args:
        root: of the file system in which /proc and /sys lie.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Bytes that the limit of each control group above this process leaves; files that it only caches do not count."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                places, names = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _CGROUP_2
            elif "memory" in controllers.split(","):
                places, names = ("sys/fs/cgroup/memory",), _CGROUP_1
            else:
                continue
            inner = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
            for place in places:  # in a container the path may be that of the host, and the mount the group itself
                for group in (inner, *inner.parents):
                    yield from _left_in(root / place / group, *names)


_CGROUP_2 = ("memory.max", "memory.current", "inactive_file")
_CGROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left_in(group: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
        most, used = (int((group / name).read_text(encoding="utf-8")) for name in (limit, usage))
        stat = (group / "memory.stat").read_text(encoding="utf-8").split()
        yield most - used + dict(zip(stat[::2], map(int, stat[1::2]))).get(cached, 0)
