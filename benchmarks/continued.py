"""Survivors that go on from where the last selection step left them, against survivors that begin anew: do they rank alike?

    python benchmarks/continued.py [--shared ../shared] [--level 4] [--parents 4] [--children 8]

Children of several parents, from the uniform genome to one that is many switches away, go through all selection steps
twice, without anyone leaving: once as in the paper (every step trains from the database's weights), once with
search.continue_training. Both have trained on as many tokens when the last step scores them, and are scored on the same
ones. How far a ranking by the paper's own rule depends on the tokens alone is shown by a third pass with other training
tokens. Prints rank correlations (Spearman) within each parent's children, and writes benchmarks/results/continued.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.pipeline import database_stage, make_teacher
from darwinlm.run import Run, opened
from darwinlm.runtime.progress import show_log
from darwinlm.runtime.rundir import settled
from darwinlm.runtime.seeds import python_random
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
        rows = [compared(*each) for each in families(run, args.parents, args.children)]
    report(rows, args)


def settings(args: argparse.Namespace, folder: Path):
    values = pep_llama.reference_settings(args.shared)
    values["search"]["learning_rate"] = args.learning_rate
    return settled({**values, "output": str(folder / "continued"), "target": {"level": args.level}})


def families(run: Run, parents: int, children: int):
    """For each parent, the scores of its children by each rule."""
    assembler = Assembler(run.source, database_stage(run), keep_dense=True, cache_bytes=1 << 30)
    teacher, search, rng = make_teacher(run), run.config.search, python_random(run.config.seed, "families")
    anew = TrainedFitness(assembler, run.splits.train, teacher, search, run.config.seed, run.dtype)
    # the same blocks to score on, the training blocks in another order
    other = TrainedFitness(assembler, run.splits.train.flip(0), teacher, search, run.config.seed, run.dtype)
    going_on = dataclasses.replace(search, continue_training=True)
    continued = TrainedFitness(assembler, run.splits.train, teacher, going_on, run.config.seed, run.dtype)
    untrained = dataclasses.replace(search, train_tokens=[0] * len(search.train_tokens))
    plain = TrainedFitness(assembler, run.splits.train, teacher, untrained, run.config.seed, run.dtype)
    parent = run.uniform_genome
    for generation in range(parents):
        candidates = offspring(parent, children, run.space, search.switches, rng)
        yield (
            last_scores(
                anew, search, candidates, parent, generation, range(len(search.stages) - 1, len(search.stages))
            ),
            last_scores(continued, going_on, candidates, parent, generation, range(len(search.stages))),
            last_scores(
                other, search, candidates, parent, generation, range(len(search.stages) - 1, len(search.stages))
            ),
            last_scores(
                plain, untrained, candidates, parent, generation, range(len(search.stages) - 1, len(search.stages))
            ),
        )
        for _ in range(SWITCHES_APART):
            parent = level_switch(parent, run.space, rng)


def last_scores(
    fitness: TrainedFitness, search: SearchConfig, candidates, parent, generation: int, steps: range
) -> list[float]:
    """The scores of the last selection step; nobody leaves in the steps before it."""
    scores: list[float] = []
    for index in steps:
        stage = dataclasses.replace(search.stages[index], survivors=len(candidates))
        scores = fitness(candidates, parent, stage, generation, index)
    return scores


def compared(anew: list[float], continued: list[float], other: list[float], plain: list[float]) -> dict:
    """Correlations and choices within one parent's children."""
    return {
        "anew": anew,
        "continued": continued,
        "other_tokens": other,
        "untrained": plain,
        "continued_spearman": spearman(anew, continued),
        "other_tokens_spearman": spearman(anew, other),
        "untrained_spearman": spearman(anew, plain),
        "same_winner": best(anew) == best(continued),
        "same_winner_other_tokens": best(anew) == best(other),
        "same_winner_untrained": best(anew) == best(plain),
    }


def spearman(first: list[float], second: list[float]) -> float:
    ranks = [torch.tensor(values, dtype=torch.float64).argsort().argsort().double() for values in (first, second)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def best(scores: list[float]) -> int:
    return min(range(len(scores)), key=lambda i: scores[i])


def report(rows: list[dict], args: argparse.Namespace) -> None:
    print(
        f"pep-llama, level {args.level:g} of 8, {len(rows)} parents of {args.children} children; torch {torch.__version__}"
    )
    print("| against training anew | rank correlation: mean (least) | same winner |")
    print("|---|---|---|")
    for title, name in (
        ("continued training", "continued"),
        ("anew, on other tokens", "other_tokens"),
        ("no training", "untrained"),
    ):
        found = [row[f"{name}_spearman"] for row in rows]
        key = "same_winner" if name == "continued" else f"same_winner_{name}"
        same = sum(row[key] for row in rows)
        print(f"| {title} | {statistics.mean(found):.3f} ({min(found):.3f}) | {same} of {len(rows)} |")
    (HERE / "results").mkdir(exist_ok=True)
    asked = {"level": args.level, "learning_rate": args.learning_rate, "children": args.children}
    (HERE / "results/continued.json").write_text(json.dumps({**asked, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
