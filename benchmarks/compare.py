"""Every method of the paper's comparisons at about 25, 37.5, 50 and 62.5 % of what can be pruned, on two small models.

    python benchmarks/compare.py [--shared ../shared] [--models pep-llama demo] [--levels 2,3,4,5] [--methods all]
                                 [--generations N] [--train-tokens N] [--runs FOLDER]

pep-llama runs with recipes/pep_llama_reference.yaml, the embedded model with preset demo. Prints the Markdown tables of
docs/benchmarks.md and keeps tables, numbers and pictures in benchmarks/results/compare_MODEL/. With --runs a killed
comparison goes on from where it was.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import darwinlm
from darwinlm.config import read_yaml
from darwinlm.demonstration import DEMO_MODEL
from darwinlm.measure.compare import markdown
from darwinlm.runtime.progress import show_log

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    parser.add_argument("--models", nargs="+", default=["pep-llama", "demo"], choices=["pep-llama", "demo"])
    parser.add_argument("--levels", default="2,3,4,5", help="of 8")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--generations", type=int, help="of the searches; by default as the settings say")
    parser.add_argument("--train-tokens", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default nowhere")
    args = parser.parse_args()
    show_log()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            if model == "pep-llama" and not (args.shared / "models/pep-llama").is_dir():
                print(f"skipped: '{args.shared}' has no models/pep-llama")
                continue
            compare(model, args, (args.runs or Path(scratch)) / model)


def compare(model: str, args: argparse.Namespace, run: Path) -> None:
    settings = of_pep_llama(args.shared) if model == "pep-llama" else {"model": str(DEMO_MODEL), "preset": "demo"}
    if args.generations:
        settings["search"] = {**settings.get("search", {}), "generations": args.generations}
    asked = {"methods": args.methods, "levels": args.levels, "train_tokens": args.train_tokens}
    found = darwinlm.compare(output=str(run), **asked, **settings)
    print(f"\n### {model}\n\n{markdown(found)}")
    kept = HERE / "results" / f"compare_{model}"
    kept.mkdir(parents=True, exist_ok=True)
    for path in (run / "compare").iterdir():
        if path.is_file() and path.suffix in (".json", ".csv", ".md", ".png"):
            shutil.copy(path, kept / path.name)


def of_pep_llama(shared: Path) -> dict[str, Any]:
    settings = read_yaml(HERE.parent / "recipes/pep_llama_reference.yaml")
    settings["blocks"]["held_out_data"] = str(shared / "text/peps-valid.txt")
    return {"model": str(shared / "models/pep-llama"), "data": str(shared / "text/peps-train.txt"), **settings}


if __name__ == "__main__":
    main()
