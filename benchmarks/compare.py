"""Every method of the paper's comparisons at about 25, 37.5, 50 and 62.5 % of what can be pruned, on two small models.

    python benchmarks/compare.py [--shared ../shared] [--models pep-llama demo] [--levels 2,3,4,5] [--methods all]
                                 [--generations 3] [--train-tokens 16384] [--learning-rate 3e-5] [--held-out 80]
                                 [--seeds 3 --seed-levels 4] [--start-tokens 8192] [--runs FOLDER]

As pruned, and after the same short post-training. Then both DarwinLM, trained selection on and off, with several seeds.
pep-llama runs with recipes/pep_llama_reference.yaml, the embedded model with preset demo, both from the linearized start,
with fewer generations and held-out blocks than there.
Prints the Markdown tables of docs/benchmarks.md and keeps tables, numbers and pictures in
benchmarks/results/compare_MODEL/ and compare_MODEL_seeds/. With --runs a killed comparison goes on from where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

import darwinlm
from darwinlm.comparison.table import Comparison, markdown
from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.runtime.progress import show_log
from subjects import pep_llama

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--models", nargs="+", default=["pep-llama", "demo"], choices=["pep-llama", "demo"])
    parser.add_argument("--levels", default="2,3,4,5", help="of 8")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--generations", type=int, default=3, help="of the searches")
    parser.add_argument("--start-tokens", type=int, default=8192, help="that the linearized start scores on")
    parser.add_argument("--train-tokens", type=int, default=16384, help="of the post-training")
    parser.add_argument("--learning-rate", default="3e-5", help="of the post-training")
    parser.add_argument("--held-out", type=int, default=80, help="blocks of held-out text")
    parser.add_argument("--seeds", type=int, default=3, help="of trained selection on and off; 1: not compared")
    parser.add_argument("--seed-levels", default="4", help="levels at which they are compared")
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default nowhere")
    args = parser.parse_args()
    show_log()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            if model == "pep-llama" and not pep_llama.is_there(args.shared):
                continue
            compare(model, args, (args.runs or Path(scratch)) / model)


def compare(model: str, args: argparse.Namespace, run: Path) -> None:
    settings = (
        pep_llama.reference_settings(args.shared)
        if model == "pep-llama"
        else {"model": str(DEMO_MODEL), "preset": "demo"}
    )
    search = {"generations": args.generations, "start": "linearized", "start_tokens": args.start_tokens}
    settings["search"] = {**settings.get("search", {}), **search}
    settings["blocks"] = {**settings.get("blocks", {}), "held_out": args.held_out}
    asked = {"train_tokens": args.train_tokens, "learning_rate": args.learning_rate, "output": str(run)}
    found = darwinlm.compare(methods=args.methods, levels=args.levels, **asked, **settings).comparison
    keep(found, run, model)
    if args.seeds > 1:
        both = {"methods": "darwinlm_untrained,darwinlm", "levels": args.seed_levels, "seeds": args.seeds}
        found = darwinlm.compare(**both, **asked, **settings).comparison
        keep(found, run, f"{model}_seeds")


def keep(found: Comparison, run: Path, name: str) -> None:
    """Print a comparison's tables and copy its files."""
    print(f"\n### {name}\n\n{markdown(found)}")
    kept = HERE / "results" / f"compare_{name}"
    kept.mkdir(parents=True, exist_ok=True)
    pictures = ["tradeoff.png", *(f"allocations_level{level:g}.png" for level in found.budgets)]
    for file in ("compare.json", "compare.csv", "compare.md", *pictures):
        shutil.copy(run / "compare" / file, kept / file)
    numbers = json.loads((kept / "compare.json").read_text())
    numbers["model"] = Path(numbers["model"]).name  # not where it lay
    (kept / "compare.json").write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
