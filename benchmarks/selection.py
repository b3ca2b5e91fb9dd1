"""Does trial training choose a better genome? The paper's table 4 (arXiv:2502.07780) at equal trial tokens, on pep-llama.

    python benchmarks/selection.py [--shared ../shared] [--runs runs/selection] [--seeds 0 1 2] [--ways none untrained ...]
                                   [--generations 3] [--tokens 1M]

The parameters of the uniform model of level 4 of 8. All ways begin where the linearized start ended: no generation at all (none),
selection without trial training (untrained), by cross entropy at the paper's learning rate (cross_entropy), by distillation at
that of a post-training among diverse genomes (distillation), and by the refit among the same (refit). Every trained way
gives its candidates the same tokens. Each result is refitted and then distilled; the same genome is not trained twice. Held-out
KL as found, refitted and trained, and the seconds of the search. Prints a table and writes
benchmarks/results/selection.json after every row; rows that are there already are not made again.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
import statistics
from itertools import product
from pathlib import Path
from typing import Any

from rankings import PARAMETERS, RATE
from recovery import METHODS, TRAIN
from reference import DEFAULT

import darwinlm
from darwinlm.config import Tokens, settled
from darwinlm.run.request import opened
from darwinlm.runtime.files import read_json, read_lines
from darwinlm.runtime.progress import show_log
from darwinlm.search.record import SearchState
from subjects import pep_llama
from subjects.rows import Row, rows_of

RESULTS = Path(__file__).parent / "results/selection.json"
STEPS = {
    "offspring": 8,
    "survivors": [4, 2, 1],
    "train_tokens": [4096, 16_384, 65_536],
    "select_tokens": [2048, 4096, 8192],
}
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "untrained": {"train_tokens": [0, 0, 0]},
    "cross_entropy": {"training": "cross_entropy", "learning_rate": 1e-5},
    "distillation": {"training": "distillation", "learning_rate": RATE, "diverse": True},
    "refit": {"training": "refit", "diverse": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--runs", type=Path, default=Path("runs/selection"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--tokens", type=Tokens, default=Tokens("1M"), help="of the distillation afterwards")
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    told = {"generations": args.generations, "tokens": int(args.tokens)}
    wanted = [{**told, "seed": seed, "way": way} for seed, way in product(args.seeds, args.ways)]
    report(rows_of(RESULTS, wanted, functools.partial(row_of, shared=args.shared, runs=args.runs)))


def row_of(asked: Row, shared: Path, runs: Path) -> Row:
    """One search, its refit, and the distillation of the refitted model."""
    settings = pep_llama.reference_settings(shared) | {"target": {"parameters": PARAMETERS}, "seed": asked["seed"]}
    for group, values in DEFAULT.items():
        settings[group] = {**settings[group], **values}
    start, output = (runs / f"seed{asked['seed']}" / way for way in ("none", asked["way"]))
    if asked["way"] != "none":
        settings["search"] |= {**STEPS, "generations": asked["generations"], **WAYS[asked["way"]]}
        begin(settings, start, output)
    summary = darwinlm.prune(output=str(output), **settings).summary
    row: Row = {"levels": read_json(output / "genome.json")["levels"], "parameters": summary["pruned"]["parameters"]}
    row |= {"found": summary["before_refit"]["kl"], "refitted": summary["pruned"]["kl"]}
    history = read_lines(output / "search/history.jsonl")
    row |= {"improved": [line["improved"] for line in history], "seconds": summary["seconds"]["search"]}
    return {**row, "trained": known(asked, row["levels"]) or trained(asked, settings, output)}


def begin(settings: dict[str, Any], start: Path, output: Path) -> None:
    """A run with the database of another, whose search has its first parent from there; one that has begun stays."""
    if (output / "search").exists():
        return
    with opened(settled({"output": str(output), **settings})) as run:
        shutil.copytree(start / "database", output / "database", dirs_exist_ok=True)
        parent = run.space.genome(read_json(start / "genome.json")["levels"])
        run.record.save(SearchState(0, parent, math.inf, 0.0))


def known(asked: Row, levels: dict[str, int]) -> float | None:
    """The KL after training that another way's row has of the same genome."""
    rows = read_json(RESULTS) if RESULTS.exists() else []
    same = {"levels": levels, "seed": asked["seed"], "tokens": asked["tokens"]}
    return next((row["trained"] for row in rows if same.items() <= row.items()), None)


def trained(asked: Row, settings: dict[str, Any], output: Path) -> float:
    """Held-out KL after the distillation of the run's model."""
    tokens = asked["tokens"]
    train = {**TRAIN, **METHODS["distillation"], "tokens": tokens, "learning_rate": RATE, "teacher": settings["model"]}
    train |= {"save_every_tokens": tokens, "eval_every_tokens": tokens}
    text = {"data": settings["data"], "blocks": settings["blocks"], "seed": asked["seed"]}
    folder = output.parent / f"{output.name}_{asked['way']}_{tokens}"
    return darwinlm.train(str(output / "model"), output=str(folder), train=train, **text).summary["trained"]["kl"]


def report(rows: list[Row]) -> None:
    print("| way | seeds | KL, found | refitted | trained | generations won | search, s |\n" + "|---" * 7 + "|")
    for way, tokens in dict.fromkeys((row["way"], row["tokens"]) for row in rows):
        mine = [row for row in rows if (row["way"], row["tokens"]) == (way, tokens)]
        cells = [", ".join(f"{row[name]:.4f}" for row in mine) for name in ("found", "refitted", "trained")]
        seconds = statistics.median(row["seconds"] for row in mine)
        won = ", ".join(str(sum(row["improved"])) for row in mine)
        print(f"| {way}, then {tokens:,} tokens | {len(mine)} | " + " | ".join(cells) + f" | {won} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
