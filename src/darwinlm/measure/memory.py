"""Peak memory of a model at work, each model in a process of its own: what else is loaded here cannot blur it.

On a GPU it is what torch held at most. On a CPU it is by how much the resident set of the process grew from when the
engine's code was loaded, but no model, to the peak while the model read and wrote; what loading took for a moment does
not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from darwinlm.config import RunConfig, resolve, to_dict
from darwinlm.errors import RequestError
from darwinlm.measure.engines import engine_of, load_code, open_rival
from darwinlm.measure.rival import Workload
from darwinlm.runtime.device import choose_device

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_REFUSED = 2
"""Exit code of a child whose request is wrong."""


def peak_memory(name: str, config: RunConfig, work: list[Workload]) -> list[int | None]:
    """Bytes that a model takes at most for each piece of work; None where the system does not tell (no Linux, no GPU).

    Args:
        name: as for `open_rival`.
        config: as for `open_rival`.
        work: what it does, in this order.

    Raises:
        RequestError: the model cannot be loaded.
    """
    if engine_of(name, config).startswith("vllm"):  # takes the memory that it is allowed, whatever the model
        return [None] * len(work)
    asked = {"name": name, "config": to_dict(config), "work": [vars(piece) for piece in work]}
    child = subprocess.run(
        [sys.executable, "-m", "darwinlm.measure.memory"], input=json.dumps(asked), capture_output=True, text=True
    )
    if child.returncode == _REFUSED:
        raise RequestError(child.stderr.strip().splitlines()[-1])
    if child.returncode < 0:
        raise MemoryError(f"the process that measured '{name}' was ended by signal {-child.returncode}")
    if child.returncode:
        raise RuntimeError(f"measuring the memory of '{name}' failed: {child.stderr.strip()[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def _measure(name: str, config: RunConfig, work: list[Workload]) -> list[int | None]:
    """The child's part."""
    if config.bench.threads:
        torch.set_num_threads(config.bench.threads)
    device = choose_device("cpu" if engine_of(name, config) == "llama.cpp" else config.device)
    if device.type != "cuda" and not (_STATUS.exists() and _CLEAR.exists()):
        return [None] * len(work)
    load_code(name, config)
    before = 0 if device.type == "cuda" else _resident("VmRSS")
    rival = open_rival(name, config)
    return [_peak_of(lambda piece=piece: rival.run(piece), device) - before for piece in work]


def _peak_of(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that are held at most during a call."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    _CLEAR.write_text(_RESET_PEAK)
    call()
    return _resident("VmHWM")


def _resident(key: str) -> int:
    """A line of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def main() -> None:
    """Read what is asked from the standard input, print the list of bytes."""
    asked = json.load(sys.stdin)
    work = [Workload(**piece) for piece in asked["work"]]
    print(json.dumps(_measure(asked["name"], resolve(asked["config"], without=("database", "target", "search")), work)))


if __name__ == "__main__":
    try:
        main()
    except RequestError as fault:
        print(" ".join(fault.faults), file=sys.stderr)
        sys.exit(_REFUSED)
