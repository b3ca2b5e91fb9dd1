"""Memory of the default path by depth: random Llamas of 4, 16 and 64 layers, pruned by database, start and refit.

    python benchmarks/depth.py [--layers 4 16 64] [--hidden 256]

Each is pruned in a process of its own; every 20 ms its anonymous memory is read (weights that stay mapped from their files do
not count), and belongs to the stage that is under way. What the start keeps of every layer in host memory, its inputs on the
tokens that it linearizes, is counted from shapes and stands beside it. Prints a table and writes
benchmarks/results/depth.json.
"""

from __future__ import annotations

import argparse
import json
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
STAGES = ("database", "search", "refit")
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
        "| layers | parameters | " + " | ".join(STAGES) + " | inputs of all layers in it |\n|---|---|---|---|---|---|"
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
    """Peaks of the stages in bytes, above what the process held before the first one."""
    parameters = write_model(layers, hidden, scratch / "model")
    settings, run = scratch / "settings.yaml", scratch / "run"
    settings.write_text(yaml.safe_dump(SETTINGS))
    command = [sys.executable, "-m", "darwinlm", "prune", str(scratch / "model"), "--config", str(settings)]
    process = subprocess.Popen([*command, "--output", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base, peaks = 0, dict.fromkeys(STAGES, 0)
    while process.poll() is None:
        stage = next(reversed(Timings(run / "timings.json").seconds()), None)
        held = anonymous_memory(process.pid)
        if stage in peaks:
            base = base or held
            peaks[stage] = max(peaks[stage], held - base)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"pruning the model of {layers} layers failed")
    inputs = layers * SETTINGS["search"]["start_tokens"] * hidden * 4
    return {"layers": layers, "parameters": parameters, "peaks": peaks, "inputs": inputs}


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
