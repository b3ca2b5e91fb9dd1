"""`darwinlm` in a process of its own, killed by SIGKILL within a call of one of its functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

KILL = """
import importlib, os, signal, sys, torch
torch.set_num_threads(1)
module, name, last = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original, calls = getattr(module, name), 0
def fatal(*arguments, **options):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(module, name, fatal)
from darwinlm.cli import main
main(sys.argv[4:])
"""


def kill_within(
    module: str, name: str, call: int, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> None:
    """Run a command line until the `call`-th call of `module.name`, and kill it there."""
    arguments = [sys.executable, "-c", KILL, module, name, str(call), *command]
    died = subprocess.run(arguments, capture_output=True, env={**os.environ, **(environment or {})})
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
