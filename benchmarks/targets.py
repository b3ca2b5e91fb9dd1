"""Parameters asked and got: from configurations alone, and by real searches on small models.

    python benchmarks/targets.py [--shared ../shared] [--shares 40 50 60 70] [--models demo pep-llama | none]

From configurations: Llama-2-7B to 2.7 B, Llama-3.1-8B to 4.6 B and Qwen2.5-14B to 8.4 B; the uniform start and 1,000
descendants of it, each a mutated child of the one before, with every attention unit. Real searches: the embedded model and
pep-llama, with MLP ladders as fine as their widths allow (a step of 8 columns), so that the steps are small beside such
small models; the parameters are counted in the exported files. Nothing here is about quality: searches are 2 generations.
Prints tables and writes benchmarks/results/targets.json; searches of models that are not run again stay there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

import darwinlm
from darwinlm.config import DatabaseConfig, RunConfig, TargetConfig
from darwinlm.cost import nominal_module
from darwinlm.database.levels import ladders
from darwinlm.genome import Space
from darwinlm.models.source import ModelSource
from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.progress import show_log
from darwinlm.runtime.seeds import python_random
from darwinlm.search.mutation import offspring
from darwinlm.target.budget import uniform
from darwinlm.target.target import target_of
from subjects import pep_llama

HERE = Path(__file__).parent
RESULTS = HERE / "results/targets.json"
SHAPES = {"llama-2-7b": "2.7B", "llama-3.1-8b": "4.6B", "qwen2.5-14b": "8.4B"}
UNITS = ("kv_group", "balanced", "query_head")
DESCENDANTS = 1000
FINE = {"levels": 88, "multiple_of": 8}
QUICK = {
    "blocks": {"sequence_length": 128, "hessian": 32, "train": 16, "select": 16, "held_out": 4},
    "search": {
        "generations": 2,
        "offspring": 4,
        "survivors": [2, 1],
        "train_tokens": [128, 256],
        "select_tokens": [256, 512],
        "start": "uniform",
        "check_every": 0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--shares", type=int, nargs="+", default=[40, 50, 60, 70])
    parser.add_argument("--models", nargs="+", default=["demo", "pep-llama"], choices=["demo", "pep-llama", "none"])
    args = parser.parse_args()
    show_log()
    rows = [from_configuration(shape, asked, unit) for shape, asked in SHAPES.items() for unit in UNITS]
    print("| model | unit | asked | start | least of 1,000 descendants | most | share of what is asked |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['unit']} | {row['asked']:,} | {row['start']:,} | {row['least']:,} | {row['most']:,} "
            f"| {row['least'] / row['asked']:.4f} to {row['most'] / row['asked']:.4f} |"
        )
    former = json.loads(RESULTS.read_text())["searches"] if RESULTS.exists() else []
    searched = [row for row in former if row["model"] not in args.models] + list(real_searches(args))
    if searched:
        print("| model | asked | parameters asked | parameters of the checkpoint | share of what is asked |")
        print("|---|---|---|---|---|")
    for row in searched:
        print(
            f"| {row['model']} | {row['share']}% | {row['asked']:,} | {row['got']:,} | {row['got'] / row['asked']:.4f} |"
        )
    values = {"configurations": rows, "searches": searched}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(values, indent=2) + "\n")


def from_configuration(shape: str, asked: str, unit: str) -> dict[str, Any]:
    """Sizes of genomes by shapes alone; with query_head K and V count in full until their attention is gone."""
    source = ModelSource(str(HERE.parent / "recipes/shapes" / shape), weights=False)
    database = DatabaseConfig(attention_unit=unit)
    config = RunConfig(database=database, target=TargetConfig(None, parameters=asked))
    space, device = Space(tuple(ladders(source.shape, database))), choose_device("cpu")
    target = target_of(config, source.shape, space, 2, device, choose_dtype("auto", device))
    budget = target.budget(lambda ladder, level: nominal_module(source.shape, ladder, level))
    rng = python_random(0, "benchmark")
    genome = start = uniform(budget, rng)
    sizes = []
    for _ in range(DESCENDANTS):
        (genome,) = offspring(genome, 1, budget, 3, rng)
        sizes.append(budget.limits[0].spent(genome))
    found = {"start": budget.limits[0].spent(start), "least": min(sizes), "most": max(sizes)}
    return {"model": shape, "unit": unit, "asked": budget.limits[0].most, **found}


def real_searches(args: argparse.Namespace) -> Any:
    """Checkpoints at every share, one database for each model."""
    models = {
        "demo": (DEMO_MODEL, "stdlib"),
        "pep-llama": (Path(pep_llama.model(args.shared)), pep_llama.text(args.shared)),
    }
    for name, (model, data) in models.items():
        if name not in args.models or not model.is_dir():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            for share in args.shares:
                common = {"data": str(data), "output": scratch, "database": FINE, **QUICK}
                summary = darwinlm.prune(str(model), restart=True, target={"parameters": f"{share}%"}, **common).summary
                asked = summary["achieved"]["limits"]["parameters"]["asked"]
                yield {"model": name, "share": share, "asked": asked, "got": stored(Path(scratch) / "model")}


def stored(folder: Path) -> int:
    """Numbers in the files of a checkpoint."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


if __name__ == "__main__":
    main()
