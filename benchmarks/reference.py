"""DarwinLM on pep-llama at the sizes and with the tokens that the authors' public code was measured with, beside its results.

    python benchmarks/reference.py [--shared ../shared] [--seeds 0 1 2] [--ways default [paper]]
                                   [--targets level=4 level=6 parameters=4264192 parameters=2658560] [--runs FOLDER]
                                   [--set refit.tokens=0 database.rel_damp=1.0e-3]

Paper: recipes/pep_llama_reference.yaml as it is, Algorithm 1 from the uniform start. Default: on the same blocks and database
steps the damping, the linearized start and the refit of today's defaults, and no generations. Parameters are those of the
uniform models of levels 4 and 6; under them attention and MLPs may exchange. What is held out decides nothing.

Prints a table and writes benchmarks/results/reference.json after every row; rows that are there already are not made again.
Quality, not speed: seconds are those of this machine and are only to be read against each other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import yaml

import darwinlm
from darwinlm.runtime.files import read_json
from darwinlm.runtime.progress import show_log
from subjects import pep_llama
from subjects.rows import rows_of

RESULTS = Path(__file__).parent / "results/reference.json"
TARGETS = ["level=4", "level=6", "parameters=4264192", "parameters=2658560"]
AUTHORS = {
    "level=4": "darwinlm_authors",
    "level=6": "darwinlm_authors_level6",
    "parameters=4264192": "darwinlm_authors",
    "parameters=2658560": "darwinlm_authors_level6",
}
"""Rows of the authors' results at the same number of parameters; their code has no exchange."""
DEFAULT = {
    "database": {"rel_damp": "auto"},
    "search": {"start": "linearized", "generations": 0, "sequence_tokens": 256},
    "refit": {"tokens": 131_072},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=["default", "paper"], default=["default"])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings than those of the way"
    )
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default nowhere")
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    wanted = [
        {"way": way, "set": args.set, "seed": seed, "target": target}
        for way, seed, target in product(args.ways, args.seeds, args.targets)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        rows = rows_of(RESULTS, wanted, lambda asked: row_of(asked, args.shared, folder))
    report(rows, read_json(args.shared / "reference/results.json"))


def row_of(asked: dict[str, Any], shared: Path, runs: Path) -> dict[str, Any]:
    """One run of `darwinlm.prune`; all targets of a way and a seed share its run directory, and so its database."""
    settings = pep_llama.reference_settings(shared)
    for group, values in (DEFAULT if asked["way"] == "default" else {}).items():
        settings[group] = {**settings[group], **values}
    settings["target"] = {}
    for group, name, value in map(setting, [*asked["set"], f"target.{asked['target']}"]):
        settings[group] = {**settings[group], name: value}
    output = runs / "_".join([asked["way"], *asked["set"], f"seed{asked['seed']}"])
    summary = darwinlm.prune(output=str(output), seed=asked["seed"], restart=True, **settings).summary
    start = read_json(output / "search/start.json")
    scored = {"scored": len(start.get("scores", [])), "linearizations": max(0, len(start.get("rounds", [])) - 1)}
    models = ("dense", "uniform", "before_refit", "pruned")
    return {**{name: summary[name] for name in models if name in summary}, **scored, "seconds": summary["seconds"]}


def setting(assignment: str) -> tuple[str, str, Any]:
    """(group, name, value) of GROUP.NAME=VALUE."""
    path, value = assignment.split("=", 1)
    group, name = path.split(".", 1)
    return group, name, yaml.safe_load(value)


def report(rows: list[dict[str, Any]], authors: dict[str, Any]) -> None:
    print(
        "| way | target | seed | parameters | uniform | found | refitted | perplexity | KL, authors | perplexity, authors |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        way = " ".join([row["way"], *row["set"]])
        found, end = row.get("before_refit", row["pruned"]), row["pruned"]
        theirs = [one for one in authors[AUTHORS[row["target"]]] if one["seed"] == row["seed"]]
        their = f"{theirs[0]['kl']:.4f} | {theirs[0]['perplexity']:.2f}" if theirs else "- | -"
        print(
            f"| {way} | {row['target']} | {row['seed']} | {end['parameters']:,} | {row['uniform']['kl']:.4f} | {found['kl']:.4f} | "
            f"{end['kl'] if 'before_refit' in row else float('nan'):.4f} | {end['perplexity']:.2f} | {their} |"
        )
    for way, target in dict.fromkeys((" ".join([row["way"], *row["set"]]), row["target"]) for row in rows):
        kls = [
            row["pruned"]["kl"] for row in rows if (" ".join([row["way"], *row["set"]]), row["target"]) == (way, target)
        ]
        print(f"{way}, {target}: mean KL {statistics.mean(kls):.4f}, from {min(kls):.4f} to {max(kls):.4f}")


if __name__ == "__main__":
    main()
