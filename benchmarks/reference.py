"""DarwinLM on pep-llama with the settings that the authors' public code was measured with, beside its results.

    python benchmarks/reference.py [--shared ../shared] [--seeds 0 1 2] [--level 4] [--start linearized]
                                   [--set search.confidence=2 database.rel_damp=1.0e-3]

Prints a table and writes benchmarks/results/reference_level<N>.json, or reference_level<N>_linearized.json with --start
linearized, which also prints how soon it is where the uniform start was at its end, if that was run before. Quality, not
speed: seconds are those of this machine and are only to be read against each other.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import darwinlm
from darwinlm.runtime.progress import show_log
from subjects import pep_llama

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--level", type=int, default=4)
    parser.add_argument("--start", choices=["uniform", "linearized"], default="uniform")
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings than the recipe's")
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default nowhere")
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    settings = pep_llama.reference_settings(args.shared)
    settings["target"] = {"level": args.level}
    settings["search"] |= {"start": args.start, "check_every": 1, "generations": args.generations}
    for group, name, value in changed(args.set):
        settings[group] = {**settings[group], name: value}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            summary = darwinlm.prune(
                output=str((args.runs or Path(scratch)) / f"level{args.level}_seed{seed}"),
                seed=seed,
                **settings,
            )
            folder = (args.runs or Path(scratch)) / f"level{args.level}_seed{seed}" / "search"
            qualities = {key: summary[key] for key in ("dense", "uniform", "pruned", "seconds")}
            rows.append({"seed": seed, **qualities, "rounds": rounds(folder), "trace": trace(folder)})
    authors = json.loads((args.shared / "reference/results.json").read_text())
    name = f"level{args.level}{'' if args.start == 'uniform' else '_linearized'}"
    report(args.level, rows, authors)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    name += "".join(f"_{setting}{value}" for _, setting, value in changed(args.set))
    asked = {"level": args.level, "start": args.start, "set": args.set}
    (results / f"reference_{name}.json").write_text(json.dumps({**asked, "rows": rows}, indent=2) + "\n")
    rival = results / f"reference_level{args.level}.json"
    if args.start == "linearized" and rival.exists():
        report_reached(rows, json.loads(rival.read_text())["rows"])


def changed(settings: list[str]) -> list[tuple[str, str, Any]]:
    """(group, name, value) of GROUP.NAME=VALUE."""
    pairs = [each.split("=", 1) for each in settings]
    return [(*name.split(".", 1), yaml.safe_load(value)) for name, value in pairs]


def trace(folder: Path) -> list[list[float]]:
    """(seconds of search, held-out KL of the parent) when the start is made, and after every generation."""
    start = json.loads((folder / "start.json").read_text())
    points, seconds = [[start["seconds"], start["held_out"]["kl"]]], start["seconds"]
    for line in map(json.loads, (folder / "history.jsonl").read_text().splitlines()):
        seconds += line["seconds"]
        points.append([seconds, line["held_out"]["kl"]])
    return points


def rounds(folder: Path) -> list[list[float]]:
    """(seconds, held-out KL) of every genome on the way to the linearized start."""
    found = json.loads((folder / "start.json").read_text())["rounds"]
    return [[line["seconds"], line["held_out"]["kl"]] for line in found]


def report(level: int, rows: list[dict], authors: dict) -> None:
    theirs = {
        row["seed"]: row for row in authors["darwinlm_authors" if level == 4 else f"darwinlm_authors_level{level}"]
    }
    print(
        f"pep-llama, level {level} of 8, held out; {platform.processor()}, torch {torch.__version__}", file=sys.stderr
    )
    print(
        "| seed | KL at the start | KL, ours | perplexity, ours | seconds: start, search | KL, authors | perplexity, authors |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        other = theirs.get(row["seed"], {"kl": float("nan"), "perplexity": float("nan")})
        ours = row["pruned"]
        print(
            f"| {row['seed']} | {row['trace'][0][1]:.4f} | {ours['kl']:.4f} | {ours['perplexity']:.2f} "
            f"| {row['trace'][0][0]:.0f}, {row['trace'][-1][0]:.0f} "
            f"| {other['kl']:.4f} | {other['perplexity']:.2f} |"
        )


def report_reached(rows: list[dict], uniform: list[dict]) -> None:
    """When the linearized start was where the uniform start ended."""
    print(
        "| seed | KL, uniform start, end | its generations, seconds | linearized start: reached after | of the seconds |"
    )
    print("|---|---|---|---|---|")
    for row, other in (
        (row, other) for row in rows for other in uniform if other["seed"] == row["seed"] and "trace" in other
    ):
        seconds, goal = other["trace"][-1]
        before = f"| {row['seed']} | {goal:.4f} | {len(other['trace']) - 1}, {seconds:.0f} s "
        way = [(f"round {number} of the start", *point) for number, point in enumerate(row["rounds"])]
        way += [(f"{number} generations", *point) for number, point in enumerate(row["trace"])]
        where, when = next(((name, when) for name, when, kl in way if kl <= goal), ("never", float("nan")))
        print(f"{before}| {where}, {when:.0f} s | {when / seconds:.2f} |")


if __name__ == "__main__":
    main()
