"""Memory of the default path by depth: random Llamas of 4, 16 and 64 layers.

    python benchmarks/depth.py [--layers 4 16 64] [--hidden 256]

Every stage is a command of its own, the search also without its cache of shrunk modules (a quarter of the memory that is free).
Every 20 ms the anonymous memory is read: weights that stay mapped from their files do not count, and glibc's allocator is told
to give back at once what is freed. What the start keeps of every layer in host memory, its inputs on the tokens that it
linearizes, is counted from shapes and stands beside it. Prints a table and writes benchmarks/results/depth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.runtime.files import read_json
from darwinlm.runtime.timings import Timings

HERE = Path(__file__).parent
UNCACHED = "search, no cache"
STAGES = ("database", "search", UNCACHED, "refit", "evaluation")
SETTINGS: dict[str, Any] = {
    "data": "stdlib",
    "blocks": {"sequence_length": 256, "hessian": 16, "train": 16, "select": 16, "held_out": 4, "pool_tokens": 60_000},
    "database": {"levels": 8},
    "target": {"parameters": "60%"},
    "search": {"start_tokens": 4096, "start_rounds": 2},
    "refit": {"tokens": 4096},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    rows = []
    print(
        "| layers | parameters | "
        + " | ".join(STAGES)
        + " | inputs of all layers in the search |\n|---|---|---|---|---|---|---|---|"
    )
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as scratch:
            row = pruned(layers, args.hidden, Path(scratch))
        rows.append(row)
        peaks = " | ".join(f"{row['peaks'][stage] / 1e6:.0f} MB" for stage in STAGES)
        print(f"| {layers} | {row['parameters'] / 1e6:.1f} M | {peaks} | {row['inputs'] / 1e6:.0f} MB |", flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/depth.json").write_text(json.dumps(rows, indent=2) + "\n")


def pruned(layers: int, hidden: int, scratch: Path) -> dict[str, Any]:
    """Peaks of the stages in bytes."""
    model, settings, run = (str(scratch / name) for name in ("model", "settings.yaml", "run"))
    parameters = write_model(layers, hidden, Path(model))
    Path(settings).write_text(yaml.safe_dump(SETTINGS))
    commands = {
        "database": ["database", model, "--config", settings, "--output", run],
        UNCACHED: ["search", run],
        "search": ["search", run, "--restart"],
        "refit": ["refit", run],
        "evaluation": ["prune", "--output", run],
    }
    peaks = {stage: peak(command, stage, Path(run)) for stage, command in commands.items()}
    inputs = layers * SETTINGS["search"]["start_tokens"] * hidden * 4
    return {"layers": layers, "parameters": parameters, "peaks": peaks, "inputs": inputs}


def peak(command: list[str], stage: str, run: Path) -> int:
    """Anonymous memory of a command at most, in bytes, above what it held when its stage began."""
    timings, named, base, found = Timings(run / "timings.json"), stage.split(",")[0], 0, 0
    if named in timings.seconds():
        timings.forget(named)
    uncached = "from darwinlm.run import stages; stages.cache_bytes = lambda: 0; " if stage == UNCACHED else ""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{uncached}from darwinlm.cli.entry import main; main()", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)},
    )
    while process.poll() is None:
        held = anonymous_memory(process.pid)
        if named in timings.seconds():
            base = base or held
            found = max(found, held - base)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"`darwinlm {' '.join(command)}` failed")
    return found


def write_model(layers: int, hidden: int, folder: Path) -> int:
    """A random Llama with the embedded model's tokenizer; its parameters."""
    known = read_json(DEMO_MODEL / "config.json")
    config = LlamaConfig(
        vocab_size=known["vocab_size"],
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for file in DEMO_MODEL.glob("tokenizer*"):
        shutil.copy(file, folder)
    return model.num_parameters()


def anonymous_memory(process: int) -> int:
    """Bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
