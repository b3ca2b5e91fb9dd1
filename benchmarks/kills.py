"""A run killed at random moments and continued by the same command, against an uninterrupted run.

    python benchmarks/kills.py [--kills 20] [--stages start export] [--seed 0]

Each trial starts `darwinlm prune` on the embedded model with small settings, waits for a stage to begin, kills the
process (SIGKILL) at a moment drawn from that stage's length in the uninterrupted run, and starts the same command again.
The stages take turns; a new one is a line in `BEGINS`. Compared are the bytes of genome, database and checkpoint and the
lines of the history without their seconds. Prints a line for each and writes benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import yaml

import darwinlm
from darwinlm.runtime.timings import Timings

HERE = Path(__file__).parent
DEMO = Path(darwinlm.__file__).parent / "demo_model"
SETTINGS = {
    "data": "stdlib",
    "blocks": {"sequence_length": 128, "hessian": 48, "train": 32, "select": 16, "held_out": 16, "pool_tokens": 60_000},
    "database": {"levels": 8},
    "target": {"level": 4},
    "search": {
        "generations": 6,
        "offspring": 6,
        "survivors": [3, 1],
        "train_tokens": [512, 1024],
        "select_tokens": [512, 1024],
        "start_tokens": 1024,
        "start_rounds": 2,
        "check_every": 2,
    },
}


def answer(run: Path) -> dict[str, str]:
    """What must be the same, by its SHA-256."""
    lines = [json.loads(line) for line in (run / "search/history.jsonl").read_text().splitlines()]
    history = json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in lines])
    found = {"history": hashlib.sha256(history.encode()).hexdigest()}
    for path in [
        run / "genome.json",
        *sorted((run / "database").iterdir()),
        *sorted((run / "model").glob("*.safetensors")),
    ]:
        found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def start(settings: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "darwinlm", "prune", str(DEMO), "--config", str(settings), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def timed(stage: str) -> Callable[[Path], bool]:
    """Whether a stage has begun: `timings.json` says so."""
    return lambda run: stage in Timings(run / "timings.json").seconds()


BEGINS: dict[str, Callable[[Path], bool]] = {
    "opening": lambda run: True,
    "database": lambda run: (run / "blocks.safetensors").exists(),
    "start": timed("search"),
    "search": lambda run: (run / "search/state.json").exists(),
    "refit": timed("refit"),
    "export": lambda run: (run / ".model.partial").exists() or (run / "model").exists(),
    "evaluation": timed("evaluation"),
}
"""Stage -> whether it has begun, in the order of a run; a run need not have all of them."""


def stages_of(run: Path, process: subprocess.Popen) -> dict[str, float]:
    """Seconds of each stage of a run under way, up to its end."""
    began: dict[str, float] = {}
    while process.poll() is None:
        for stage in [stage for stage in BEGINS if stage not in began and BEGINS[stage](run)]:
            began[stage] = time.perf_counter()
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit("the uninterrupted run failed")
    began["end"] = time.perf_counter()
    return {stage: began[later] - began[stage] for stage, later in pairwise(began)}


def killed(run: Path, settings: Path, stage: str, wait: float) -> bool:
    """Start a run and kill it so many seconds after a stage has begun; False where it ended before."""
    process = start(settings, run)
    while not BEGINS[stage](run) and process.poll() is None:
        time.sleep(0.002)
    try:
        process.wait(wait)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stages", nargs="+", choices=BEGINS, help="by default all that the run has")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        settings, whole = Path(scratch) / "settings.yaml", Path(scratch) / "whole"
        settings.write_text(yaml.safe_dump(SETTINGS))
        lengths = stages_of(whole, start(settings, whole))
        truth, stages = answer(whole), [stage for stage in lengths if stage in (args.stages or BEGINS)]
        print("uninterrupted:", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in lengths.items()))
        for trial in range(args.kills):
            run, stage = Path(scratch) / str(trial), stages[trial % len(stages)]
            wait = rng.uniform(0, lengths[stage])
            died = killed(run, settings, stage, wait)
            same = start(settings, run).wait() == 0 and answer(run) == truth
            rows.append({"in": stage, "seconds_into_it": wait, "killed": died, "same": same})
            told = "the same" if same else "DIFFERENT"
            print(f"{'killed' if died else 'ended before'} {wait:4.1f} s into {stage}: {told}", flush=True)
    print(f"{sum(row['same'] for row in rows)} of {len(rows)} the same")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/kills.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
