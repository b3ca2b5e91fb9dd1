"""Post-training of DarwinLM's and the uniform model: cross entropy, distillation and adapters on the same tokens.

    python benchmarks/recovery.py [--models demo pep-llama] [--runs runs/recovery] [--run FINISHED_RUN] [--shared ../shared]
                                  [--tokens 30K 120K] [--rates ce=2e-4 distillation=3e-4 lora=3e-3] [--cells N]

The demo model is pruned with preset demo, pep-llama with recipes/pep_llama_reference.yaml, unless --run names a finished run
of that model (give one model then). The uniform model comes from the same database. Every cell (genome, method, tokens) is
a training with a schedule of its own, in a folder of its own under --runs, so a killed benchmark goes on; --cells ends it
after so many new cells. Prints the table of docs/benchmarks.md, writes benchmarks/results/recovery_MODEL.json and
docs/pictures/recovery_MODEL.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.config import Tokens, preset_values, settled
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.run.request import opened
from darwinlm.runtime.files import read_lines
from darwinlm.runtime.progress import show_log
from darwinlm.runtime.rundir import RunDirectory
from subjects import pep_llama

HERE = Path(__file__).parent
TRAIN = {"sequence_length": 256, "batch_tokens": 4096, "micro_batch_sequences": 8, "warmup_steps": 3, "epochs": 8}
METHODS: dict[str, dict[str, Any]] = {
    "ce": {"distill_weight": 0.0},
    "distillation": {"distill_weight": 1.0},
    "lora": {"distill_weight": 1.0, "method": "lora"},
}
TITLES = {"ce": "cross entropy", "distillation": "distillation", "lora": "distillation, LoRA of rank 32"}
GENOMES = ("darwinlm", "uniform")
RATES = {"ce": 2e-4, "distillation": 3e-4, "lora": 3e-3}


@dataclass(frozen=True)
class Cell:
    """A training: which genome, how, on how many tokens."""

    genome: str
    method: str
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo", "pep-llama"], choices=["demo", "pep-llama"])
    parser.add_argument("--runs", type=Path, default=Path("runs/recovery"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--tokens", type=Tokens, nargs="+", default=[Tokens("30K"), Tokens("120K")])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rates", nargs="+", default=[], help="METHOD=RATE")
    parser.add_argument("--generations", type=int, help="of the search; by default as the settings say")
    parser.add_argument("--cells", type=int, default=sys.maxsize)
    args = parser.parse_args()
    show_log()
    args.rates = RATES | {name: float(rate) for name, rate in (word.split("=") for word in args.rates)}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for model in args.models:
        if model == "pep-llama" and not pep_llama.is_there(args.shared):
            continue
        recover(model, args, args.runs / model)


def recover(model: str, args: argparse.Namespace, folder: Path) -> None:
    checkpoints = pruned(settings_of(model, args), args.run or folder / "run", folder)
    cells = [Cell(*words) for words in product(GENOMES, args.methods, map(int, args.tokens))]
    left, rows = args.cells, []
    for cell in cells:
        output = folder / f"{cell.genome}_{cell.method}_{cell.tokens}_lr{args.rates[cell.method]:g}"
        if not (output / "summary.json").exists():
            if not left:
                return print(f"{model}: more cells are left; the same command goes on")
            left -= 1
        rows.append(trained(cell, checkpoints[cell.genome], output, settings_of(model, args), args.rates[cell.method]))
    dense = Path(settings_of(model, args)["model"])
    result = {"model": model, "threads": torch.get_num_threads(), "train": TRAIN, "rates": args.rates, "cells": rows}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / f"results/recovery_{model}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, HERE.parent / f"docs/pictures/recovery_{model}.png")
    print(f"\n### {model} ({dense.name})\n\n{table(rows, args.methods, [int(t) for t in args.tokens])}")


def settings_of(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a run of the model is asked with."""
    demo = {"model": str(DEMO_MODEL), **preset_values("demo")}
    settings = demo if model == "demo" else pep_llama.reference_settings(args.shared)
    if args.generations:
        settings["search"]["generations"] = args.generations
    return settings


def pruned(settings: dict[str, Any], run: Path, folder: Path) -> dict[str, Path]:
    """The checkpoints of both genomes; made where they are missing."""
    if not RunDirectory(run).summary.exists():
        darwinlm.prune(output=str(run), **settings)
    uniform = folder / "uniform"
    if not uniform.exists():
        with opened(settled({"output": str(run)})) as there:
            assembler = Assembler(there.source, there.finished_database())
            export_checkpoint(assembler, there.uniform_genome, uniform, {"genome": "uniform"}, {})
    return {"darwinlm": run / "model", "uniform": uniform}


def trained(cell: Cell, checkpoint: Path, output: Path, settings: dict[str, Any], rate: float) -> dict[str, Any]:
    """One training: what its summary and its history say."""
    asked = {
        **TRAIN,
        **METHODS[cell.method],
        "tokens": cell.tokens,
        "learning_rate": rate,
        "teacher": settings["model"],
    }
    asked |= {"eval_every_tokens": max(TRAIN["batch_tokens"], cell.tokens // 6), "save_every_tokens": cell.tokens}
    summary = darwinlm.train(
        str(checkpoint), data=settings["data"], output=str(output), blocks=settings["blocks"], train=asked
    ).summary
    looks = [line for line in read_lines(output / "train/history.jsonl") if "held_out" in line]
    facts = {name: summary[name] for name in ("parameters", "before", "trained", "tokens", "seconds")}
    return {**vars(cell), "rate": rate, **facts, "curve": [{"tokens": x["tokens"], **x["held_out"]} for x in looks]}


def table(rows: list[dict[str, Any]], methods: list[str], tokens: list[int]) -> str:
    """Perplexity and KL by method and tokens, genomes side by side."""
    by = {(row["genome"], row["method"], count): row for row, count in zip(rows, tokens * (len(rows) // len(tokens)))}
    lines = ["| | tokens | DarwinLM: perplexity | KL | uniform: perplexity | KL |", "|---|---|---|---|---|---|"]
    first = [by[genome, methods[0], tokens[0]]["before"] for genome in GENOMES]
    lines.append(line("one-shot", 0, first))
    for method, count in product(methods, tokens):
        found = [by[genome, method, count] for genome in GENOMES]
        lines.append(line(TITLES[method], found[0]["tokens"], [row["trained"] for row in found]))
    return "\n".join(lines)


def line(title: str, tokens: int, qualities: list[dict[str, float]]) -> str:
    cells = " | ".join(f"{quality['perplexity']:.2f} | {quality['kl']:.4f}" for quality in qualities)
    return f"| {title} | {tokens:,} | {cells} |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Held-out perplexity and KL against tokens: curves of the longest trainings, ends of all."""
    longest = max(row["tokens"] for row in rows)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    colors = dict(zip(METHODS, ("tab:blue", "tab:orange", "tab:green")))
    for axis, (key, title) in zip(
        figure.subplots(1, 2), (("perplexity", "perplexity"), ("kl", "KL to the dense model"))
    ):
        for row in rows:
            style = {"color": colors[row["method"]], "linestyle": "-" if row["genome"] == "darwinlm" else "--"}
            axis.plot(row["tokens"], row["trained"][key], marker="o", markersize=5, **style)
            if row["tokens"] == longest:
                label = f"{'DarwinLM' if row['genome'] == 'darwinlm' else 'uniform'}, {TITLES[row['method']]}"
                axis.plot([p["tokens"] for p in row["curve"]], [p[key] for p in row["curve"]], label=label, **style)
        axis.set(title=f"{title}, held-out text", xlabel="tokens of post-training")
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
