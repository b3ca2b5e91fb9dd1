"""Do candidates rank alike where survivors go on from the last selection step, where they begin anew, on other tokens?

    python benchmarks/continued.py [--shared ../shared] [--level 4] [--parents 4] [--children 8]

Children of several parents, from the uniform genome to one that is many switches away, are scored in the last selection
step: after going through all steps with search.continue_training, nobody leaving; trained anew in it; trained anew on
other blocks; and untrained. All are scored on the same tokens. Prints rank correlations (Spearman) with training anew
within each parent's children, and writes benchmarks/results/continued.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import settled
from darwinlm.run.request import Run, opened
from darwinlm.run.stages import database_stage, make_teacher
from darwinlm.runtime.progress import show_log
from darwinlm.runtime.seeds import python_random
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Pools
from darwinlm.search.mutation import level_switch, offspring
from darwinlm.search.selection import TrainedFitness
from subjects import pep_llama

HERE = Path(__file__).parent
SWITCHES_APART = 8
"""Level switches between one parent and the next."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--level", type=float, default=4)
    parser.add_argument("--parents", type=int, default=4)
    parser.add_argument("--children", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--runs", type=Path, help="where the run is kept; by default nowhere")
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    with tempfile.TemporaryDirectory() as scratch, opened(settings(args, args.runs or Path(scratch))) as run:
        rows = list(families(run, args.parents, args.children))
    report(rows, args)


def settings(args: argparse.Namespace, folder: Path):
    values = pep_llama.reference_settings(args.shared)
    values["search"]["learning_rate"] = args.learning_rate
    return settled({**values, "output": str(folder / "continued"), "target": {"level": args.level}})


def families(run: Run, parents: int, children: int) -> Iterator[dict[str, list[float]]]:
    """For each parent, the scores of its children by every rule."""
    assembler = Assembler(run.source, database_stage(run), cache_bytes=1 << 30)
    teacher, search, rng = make_teacher(run), run.config.search, python_random(run.config.seed, "families")
    steps = range(len(search.stages))
    rules = {
        "anew": (run.splits.train, {"continue_training": False}, steps[-1:]),
        "continued": (run.splits.train, {}, steps),
        "other tokens": (run.splits.train.flip(0), {}, steps[-1:]),  # the same numbers are other blocks
        "untrained": (run.splits.train, {"learning_rate": 0.0}, steps[-1:]),
    }
    parent, budget = run.uniform(assembler.module_widths), run.budget(assembler.module_widths)
    for generation in range(parents):
        candidates = offspring(parent, children, budget, search.switches, rng)
        found: dict[str, list[float]] = {}
        for rule, (pool, changed, visited) in rules.items():
            config = dataclasses.replace(search, **changed)
            fitness = TrainedFitness(assembler, Pools(pool, teacher, run.stream), config, run.config.seed, run.dtype)
            for index in visited:
                everyone = dataclasses.replace(search.stages[index], survivors=children)
                last = index == len(search.stages) - 1
                step = Step(candidates, parent, everyone, generation, index, last)
                found[rule] = fitness(step).mean(1).tolist()
        yield found
        for _ in range(SWITCHES_APART):
            parent = level_switch(parent, budget, rng)


def spearman(first: list[float], second: list[float]) -> float:
    ranks = [torch.tensor(values, dtype=torch.float64).argsort().argsort().double() for values in (first, second)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def best(scores: list[float]) -> int:
    return min(range(len(scores)), key=lambda i: scores[i])


def report(rows: list[dict[str, list[float]]], args: argparse.Namespace) -> None:
    print(
        f"pep-llama, level {args.level:g} of 8, {len(rows)} parents of {args.children} children; torch {torch.__version__}"
    )
    print("| against training anew | rank correlation: mean (least) | same winner | largest difference |")
    print("|---|---|---|---|")
    for rule in list(rows[0])[1:]:
        found = [spearman(row["anew"], row[rule]) for row in rows]
        same = sum(best(row["anew"]) == best(row[rule]) for row in rows)
        apart = max(abs(a - b) for row in rows for a, b in zip(row["anew"], row[rule]))
        print(f"| {rule} | {statistics.mean(found):.3f} ({min(found):.3f}) | {same} of {len(rows)} | {apart:.2g} |")
    (HERE / "results").mkdir(exist_ok=True)
    asked = {"level": args.level, "learning_rate": args.learning_rate, "children": args.children}
    (HERE / "results/continued.json").write_text(json.dumps({**asked, "scores": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
