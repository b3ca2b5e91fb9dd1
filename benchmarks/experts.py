"""A small mixture of experts, pruned by count, by width and by both at equal sizes, its experts leaving in several orders.

    python recipes/demo_model/train_experts.py --output runs/experts
    python benchmarks/experts.py [--model runs/experts] [--levels 2 3] [--runs FOLDER] [--distil 32K]

Every layer at the same level of 4, attentions whole; held-out KL and perplexity as pruned, refitted, and distilled after that.
Prints a table and writes benchmarks/results/experts.json after every row; rows that are there already are not made again.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from darwinlm.assemble import Assembler
from darwinlm.config import Tokens, settled
from darwinlm.database import experts
from darwinlm.database.build import build_database
from darwinlm.database.levels import ladders
from darwinlm.database.store import MANIFEST, Database
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run, opened
from darwinlm.runtime.progress import show_log
from subjects.distilled import distilled
from subjects.rows import rows_of

RESULTS = Path(__file__).parent / "results/experts.json"
BLOCKS = {"sequence_length": 256, "hessian": 64, "train": 8, "select": 8, "held_out": 48}


def by_chance(seed: int, sample: experts.Sample, least: int) -> list[int]:
    return random.Random(seed).sample(range(sample.mixture.count), sample.mixture.count)


def by_frequency(sample: experts.Sample, least: int) -> list[int]:
    """Most taken first."""
    counts = sample.chosen.flatten().bincount(minlength=sample.mixture.count)
    return counts.argsort(descending=True, stable=True).tolist()


ORDERS: dict[str, Mapping[str, experts.Ordering]] = {
    **{f"random, seed {seed}": {"random": partial(by_chance, seed)} for seed in range(3)},
    "frequency": {"frequency": by_frequency},
    "REAP": {"norm": experts.by_norm},
    "change of the output": {"change": experts.by_change},
    "the better of the last two, by layer": experts.ORDERS,
}
LEAVES = {"columns": ["none"], "experts": list(ORDERS), "both": list(ORDERS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/experts"))
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--runs", type=Path, help="where databases are kept; by default nowhere")
    parser.add_argument("--distil", type=Tokens, default=Tokens("32K"), help="tokens")
    args = parser.parse_args()
    if not (args.model / "config.json").exists():
        print(
            f"Left out: there is no '{args.model}'. Make it by recipes/demo_model/train_experts.py --output {args.model}."
        )
        return
    show_log()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        asked = {"model": str(args.model), "data": "stdlib", "output": str(folder / "run"), "blocks": BLOCKS}
        asked |= {"database": {"multiple_of": 8, "levels": 4}, "target": {"level": 2}}
        with opened(settled(asked)) as run:
            held_out = HeldOut(run.splits.held_out, run.stream)
            rows = rows_of(
                RESULTS, wanted(args.levels, int(args.distil)), lambda row: row_of(row, run, held_out, folder)
            )
            dense = held_out.dense_quality()
    print_table(rows, dense)


def wanted(levels: list[int], distilled: int) -> Iterator[dict[str, Any]]:
    for leaves, orders in LEAVES.items():
        for order in orders:
            for level in levels:
                yield {"leaves": leaves, "order": order, "level": level, "distilled_tokens": distilled}


def row_of(row: dict[str, Any], run: Run, held_out: HeldOut, folder: Path) -> dict[str, Any]:
    """Size and scores of the uniform genome of a level."""
    database = database_of(row, run, folder / f"{row['leaves']}, {row['order']}")
    assembler = Assembler(run.source, database)
    genome: Genome = tuple(row["level"] if ladder.rungs else 0 for ladder in database.ladders())
    model, refits = assembler.model(genome, run.device), Refits(None, {})
    before = held_out.quality_of_model(model)
    pruned = assembler.stream(genome, run.device, run.dtype)
    refit_blocks(refits, run.stream, pruned, None, run.splits.hessian, batch=8)
    refits.load_into(model)
    after = held_out.quality_of_model(model)
    with tempfile.TemporaryDirectory() as scratch:
        stream = distilled(run, assembler, genome, refits, row["distilled_tokens"], "stdlib", Path(scratch))
        trained = held_out.quality(stream)
    found = {"before": before, "after": after, "distilled": trained}
    rung = list(database.ladders()[-1].rungs[row["level"]])
    return {"rung": rung, **{name: scores(one) for name, one in found.items()}}


def database_of(row: dict[str, Any], run: Run, folder: Path) -> Database:
    config = replace(run.config.database, experts_lose=row["leaves"])
    database = Database.open(folder) if (folder / MANIFEST).exists() else Database(folder, {})
    orders = ORDERS.get(row["order"], experts.ORDERS)
    build_database(database, ladders(run.source.shape, config), run.stream, run.splits.hessian, config, orders=orders)
    return database


def scores(quality: Quality) -> dict[str, Any]:
    return {"parameters": quality.parameters, "kl": quality.kl, "perplexity": quality.perplexity}


def print_table(rows: list[dict[str, Any]], dense: Quality) -> None:
    print(f"dense: {dense.parameters:,} parameters, perplexity {dense.perplexity:.2f}\n")
    stages = ("before", "after", "distilled")
    print("| what leaves | order of experts | experts x columns | parameters ", end="")
    print("| KL | refitted | distilled | perplexity | refitted | distilled |")
    print("|---" * 10 + "|")
    for row in sorted(rows, key=lambda row: row["level"]):
        count, width = row["rung"]
        kls = " | ".join(f"{row[stage]['kl']:.4f}" for stage in stages)
        perplexities = " | ".join(f"{row[stage]['perplexity']:.2f}" for stage in stages)
        parameters = row["before"]["parameters"]
        print(f"| {row['leaves']} | {row['order']} | {count} x {width} | {parameters:,} | {kls} | {perplexities} |")


if __name__ == "__main__":
    main()
