"""Gradual pruning against direct pruning at equal training tokens, on pep-llama.

    python benchmarks/gradual.py [--shared ../shared] [--seeds 0] [--tokens 200K] [--first 4] [--then 5]
                                 [--learning-rate 5e-4] [--distill] [--runs FOLDER]

Gradual: prune to the first level of 8, train on half the tokens, prune what came out to the second level, train on the
other half. Direct: prune to the second level, train on all of them. Searches and trainings have the same settings in
both. Scores are against the dense model on held-out text. Prints a Markdown table and writes
benchmarks/results/gradual.json; with --runs a killed benchmark goes on from where it was. Quality, not speed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import darwinlm
from darwinlm.config.training import Tokens
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import read_tensors
from darwinlm.runtime.progress import show_log
from subjects import pep_llama

HERE = Path(__file__).parent
SEARCH = {
    "start": "linearized",
    "start_tokens": 1024,
    "start_rounds": 2,
    "generations": 4,
    "offspring": 4,
    "survivors": [1],
    "train_tokens": [0],
    "select_tokens": [2048],
    "check_every": 0,
}
"""Short, and without trial training: the same in both ways."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=Tokens, default=Tokens("200K"), help="of training in all")
    parser.add_argument("--first", type=int, default=4)
    parser.add_argument("--then", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--distill", action="store_true", help="half of the loss is the KL to the dense model")
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default nowhere")
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    with tempfile.TemporaryDirectory() as scratch:
        rows = {seed: both(args, seed, (args.runs or Path(scratch)) / f"seed{seed}") for seed in args.seeds}
    report(rows, args)


def both(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Quality]:
    """The quality after every step of both ways."""
    dense = pep_llama.model(args.shared)
    first = prune(args, seed, dense, args.first, folder / "gradual-1-prune")
    half = train(args, seed, first, args.tokens // 2, folder / "gradual-2-train")
    second = prune(args, seed, half, args.then, folder / "gradual-3-prune")
    last = train(args, seed + 1000, second, args.tokens // 2, folder / "gradual-4-train")  # other text than before
    lend_database(folder / "gradual-1-prune", folder / "direct-1-prune")
    direct = prune(args, seed, dense, args.then, folder / "direct-1-prune")
    trained = train(args, seed, direct, args.tokens, folder / "direct-2-train")
    tokens = read_tensors(folder / "gradual-1-prune/blocks.safetensors")[0]["held_out"].long()
    held_out = HeldOut(tokens, stream(dense))
    steps = {
        f"gradual: pruned to {args.first}": first,
        "gradual: trained on half": half,
        f"gradual: pruned to {args.then}": second,
        "gradual: trained on the other half": last,
        f"direct: pruned to {args.then}": direct,
        "direct: trained on all": trained,
    }
    return {"dense": held_out.dense_quality()} | {name: held_out.quality(stream(path)) for name, path in steps.items()}


def stream(model: str) -> BlockStream:
    return BlockStream(ModelSource(model), torch.device("cpu"), torch.float32)


def prune(args: argparse.Namespace, seed: int, model: str, level: int, output: Path) -> str:
    settings = pep_llama.reference_settings(args.shared)
    settings["search"] |= SEARCH
    settings |= {"model": model, "target": {"level": level}}
    darwinlm.prune(output=str(output), seed=seed, **settings)
    return str(output / "model")


def train(args: argparse.Namespace, seed: int, model: str, tokens: int, output: Path) -> str:
    settings: dict[str, Any] = {
        "tokens": tokens,
        "sequence_length": 256,
        "batch_tokens": 4096,
        "micro_batch_sequences": 8,
        "learning_rate": args.learning_rate,
        "warmup_steps": 5,
        "shuffle_blocks": 8192,
    }
    if args.distill:
        settings["teacher"] = pep_llama.model(args.shared)
    blocks = {"sequence_length": 256, "held_out": 16, "held_out_data": pep_llama.held_out_text(args.shared)}
    data = pep_llama.text(args.shared)
    darwinlm.train(model, data=data, output=str(output), seed=seed, train=settings, blocks=blocks)
    return str(output / "model")


def lend_database(owner: Path, borrower: Path) -> None:
    """Both ways begin with the same database of the dense model: it is made once."""
    if not (borrower / "database/manifest.json").exists():
        borrower.mkdir(parents=True, exist_ok=True)
        shutil.copy(owner / "blocks.safetensors", borrower)
        shutil.copytree(owner / "database", borrower / "database", dirs_exist_ok=True)
        shutil.copy(owner / "config.yaml", borrower)  # marks the folder as a run


def report(rows: dict[int, dict[str, Quality]], args: argparse.Namespace) -> None:
    names = list(next(iter(rows.values())))
    print(f"pep-llama, {args.tokens:,} tokens of training in all, held out; torch {torch.__version__}")
    print("| step | parameters | " + " | ".join(f"KL, seed {seed} | perplexity, seed {seed}" for seed in rows), end="")
    print(" | mean KL | mean perplexity |")
    print("|---" * (4 + 2 * len(rows)) + "|")
    for name in names:
        found = [rows[seed][name] for seed in rows]
        cells = " | ".join(f"{q.kl:.4f} | {q.perplexity:.2f}" for q in found)
        kl, perplexity = (statistics.mean(getattr(q, key) for q in found) for key in ("kl", "perplexity"))
        print(f"| {name} | {found[0].parameters:,} | {cells} | {kl:.4f} | {perplexity:.2f} |")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    values = {seed: {name: vars(quality) for name, quality in found.items()} for seed, found in rows.items()}
    settings = {key: str(value) for key, value in vars(args).items() if not isinstance(value, Path)}
    (results / "gradual.json").write_text(json.dumps({"settings": settings, "rows": values}, indent=2) + "\n")


if __name__ == "__main__":
    main()
