"""The program that checks and measures what needs a GPU, tried on a CPU; in a Python with little installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "benchmarks/gpu.py"
BARE = """
import runpy, sys
sys.modules["pydantic"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        BARE,
        str(PROGRAM),
        "--device",
        "cpu",
        "--small",
        "--out",
        str(tmp_path / "gpu.json"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    parts = {name: values for name, values in result.items() if isinstance(values, dict)}
    assert list(parts) == ["graphs", "hessians", "trials", "no_numbers", "generation", "refit", "two_ranks"]
    assert not any("left out" in values or "fault" in values for values in parts.values())
    assert parts["generation"]["largest_gap_of_scores"] == 0  # to the bit, on a CPU


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "There is no GPU here: nothing to check.\n")
    assert list(tmp_path.iterdir()) == []
