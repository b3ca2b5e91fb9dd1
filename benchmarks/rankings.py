"""Which genome to train? Up to sixteen diverse genomes of one size, as pruned, refitted, and distilled on ever more tokens.

    python benchmarks/rankings.py [--shared ../shared] [--runs runs/rankings] [--tokens 50K 500K] [--seeds 0] [--cells N]

pep-llama at the parameters of the uniform model of level 4 of 8. The genomes are exact allocations of costs that are bent on
purpose: rich in attention or in MLPs, deep or wide, of the front, the middle or the end, at random; with them the uniform one
and what the search finds. Every cell (genome, as pruned or refitted, tokens, seed of the training text's order) is a training
with a schedule of its own; held-out KL. Prints Spearman's correlations and what choosing by each column would cost, and
writes benchmarks/results/rankings.json. A killed benchmark goes on; --cells ends it after so many new trainings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from recovery import METHODS, TRAIN
from reference import DEFAULT
from scipy.stats import spearmanr

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.config import Tokens, settled
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut
from darwinlm.run.request import Run, opened
from darwinlm.run.stages import make_teacher, refit_stage
from darwinlm.runtime.files import read_json, write_json
from darwinlm.runtime.progress import show_log
from darwinlm.runtime.rundir import RunDirectory
from darwinlm.runtime.seeds import python_random
from darwinlm.search.fitness import Pools
from darwinlm.search.propose import FORBIDDEN, allocate, diverse
from darwinlm.search.start import ModelMeasures
from subjects import pep_llama

RESULTS = Path(__file__).parent / "results/rankings.json"
PARAMETERS = 4_264_192
RATE = 3e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--runs", type=Path, default=Path("runs/rankings"))
    parser.add_argument("--tokens", type=Tokens, nargs="*", default=[Tokens("50K"), Tokens("500K")])
    parser.add_argument("--from", dest="begin", nargs="+", choices=["pruned", "refitted"], default=["pruned"])
    parser.add_argument("--genomes", nargs="+", help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", type=int, default=sys.maxsize)
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    settings = pep_llama.reference_settings(args.shared) | {"target": {"parameters": PARAMETERS}}
    for group, values in DEFAULT.items():
        settings[group] = {**settings[group], **values}
    rows: dict[str, dict[str, Any]] = read_json(RESULTS) if RESULTS.exists() else {}
    checkpoints(settings, args.runs, rows)
    left = args.cells
    for tokens, seed, begin, name in product(args.tokens, args.seeds, args.begin, args.genomes or list(rows)):
        column = f"{begin}, {int(tokens):,} tokens, seed {seed}"
        if left and column not in rows[name]:
            rows[name][column] = trained(settings, args.runs / begin / name.replace("/", "_"), int(tokens), seed)
            write_json(RESULTS, rows)
            left -= 1
    report(rows)


def checkpoints(settings: dict[str, Any], runs: Path, rows: dict[str, dict[str, Any]]) -> None:
    """A checkpoint of every genome as pruned and refitted, and its held-out scores."""
    if not RunDirectory(runs / "run").summary.exists():
        darwinlm.prune(output=str(runs / "run"), **settings)
    with opened(settled({"output": str(runs / "run")})) as run:
        database = run.finished_database()
        assembler, held_out = Assembler(run.source, database), HeldOut(run.splits.held_out, run.stream)
        for name, genome in genomes(run, assembler):
            if name in rows:
                continue
            write_json(run.directory.genome, {"levels": run.space.named(genome)})
            row: dict[str, Any] = {"levels": genome, "parameters": assembler.shape(genome).parameters}
            for column, refits in (("pruned", None), ("refitted", refit_stage(run, database, genome))):
                folder = runs / column / name.replace("/", "_")
                export_checkpoint(assembler, genome, folder, {"genome": name}, {}, refits)
                model = assembler.model(genome, run.device)
                if refits:
                    refits.load_into(model)
                row[column] = held_out.quality_of_model(model).kl
            rows[name] = row
            write_json(RESULTS, rows)


def genomes(run: Run, assembler: Assembler) -> Iterator[tuple[str, Genome]]:
    """Up to sixteen, all different and full within the budget."""
    budget, uniform = run.budget(assembler.module_widths), run.first(assembler.module_widths)
    if found := run.record.load():
        yield "found", found.parent
    yield "uniform", uniform
    measures = ModelMeasures(assembler, Pools(run.splits.train, make_teacher(run), run.stream), run.config.search, 0)
    costs = measures.estimate(uniform, measures.kls([uniform])[0], 1).costs
    yield from diverse(costs, budget, run.ladders).items()
    near = [
        [cost if abs(level - at) <= 1 else FORBIDDEN for level, cost in enumerate(row)]
        for row, at in zip(costs, uniform)
    ]
    rng = python_random(0, "rankings")
    random = [
        [[weight * level**2 for level in range(len(row))] for row in costs for weight in [rng.random()]] for _ in "01"
    ]
    for name, each in {"near uniform": near, "random": random[0], "random again": random[1]}.items():
        if genome := allocate(each, budget):
            yield name, genome


def trained(settings: dict[str, Any], checkpoint: Path, tokens: int, seed: int) -> float:
    """Held-out KL after a distillation."""
    output = checkpoint.parent / f"{checkpoint.name}_{tokens}_{seed}"
    asked = {**TRAIN, **METHODS["distillation"], "tokens": tokens, "learning_rate": RATE, "teacher": settings["model"]}
    asked |= {"save_every_tokens": tokens, "eval_every_tokens": tokens}
    summary = darwinlm.train(
        str(checkpoint), data=settings["data"], output=str(output), blocks=settings["blocks"], train=asked, seed=seed
    ).summary
    return summary["trained"]["kl"]


def report(rows: dict[str, dict[str, Any]]) -> None:
    columns = list(
        dict.fromkeys(column for row in rows.values() for column in row if column not in ("levels", "parameters"))
    )
    print("| genome | parameters | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
    for name, row in rows.items():
        cells = " | ".join(f"{row[column]:.4f}" if column in row else "" for column in columns)
        print(f"| {name} | {row['parameters']:,} | {cells} |")
    whole = [column for column in columns if all(column in row for row in rows.values())]
    last = whole[-1]
    best = min(row[last] for row in rows.values())
    print(f"\n| chosen by | Spearman with {last} | chosen | its KL there | above the best |\n|---|---|---|---|---|")
    for column in whole:
        chosen = min(rows, key=lambda name: rows[name][column])
        rank = spearmanr([row[column] for row in rows.values()], [row[last] for row in rows.values()]).statistic
        kl = rows[chosen][last]
        print(f"| {column} | {rank:.3f} | {chosen} | {kl:.4f} | {kl / best - 1:+.1%} |")


if __name__ == "__main__":
    main()
