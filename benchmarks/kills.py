"""A run killed at random moments and continued by the same command, against an uninterrupted run.

    python benchmarks/kills.py [--kills 20] [--seed 0]

Each trial starts `darwinlm prune` on the embedded model with small settings, kills it (SIGKILL) at a moment drawn
between its start and the end of the uninterrupted run, and starts the same command again until it ends by itself.
Compared are the bytes of genome, database and checkpoint and the lines of the history without their seconds. Prints a
line for each and writes benchmarks/results/kills.json.
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
from pathlib import Path

import yaml

import darwinlm

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


def reached(run: Path) -> str:
    """Where a run was when it was killed."""
    stages = (("model/config.json", "export"), ("search/state.json", "search"), ("search/start.json", "search"))
    for name, stage in (*stages, ("database/manifest.json", "database"), ("blocks.safetensors", "database")):
        if (run / name).exists():
            return stage
    return "before the database"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "settings.yaml"
        settings.write_text(yaml.safe_dump(SETTINGS))
        began = time.perf_counter()
        if start(settings, Path(scratch) / "whole").wait():
            raise SystemExit("the uninterrupted run failed")
        length, truth = time.perf_counter() - began, answer(Path(scratch) / "whole")
        print(f"uninterrupted: {length:.1f} s")
        for trial in range(args.kills):
            run, moment = Path(scratch) / str(trial), rng.uniform(0, length)
            process = start(settings, run)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            where = reached(run)
            same = start(settings, run).wait() == 0 and answer(run) == truth
            rows.append({"killed_after_seconds": moment, "in": where, "same": same})
            print(f"killed after {moment:4.1f} s ({where}): {'the same' if same else 'DIFFERENT'}", flush=True)
    print(f"{sum(row['same'] for row in rows)} of {len(rows)} the same")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/kills.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
