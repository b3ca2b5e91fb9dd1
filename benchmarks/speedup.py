"""Speed-ups asked and measured, the error of the latency table, and how such a model differs from one of the same size.

    python benchmarks/speedup.py [--shared ../shared] [--models demo pep-llama] [--speedups 1.5 2] [--stages prefill]
                                 [--batch 4] [--context 512] [--runs 5] [--repeats 15] [--generations 6] [--engine transformers]

For each model: `darwinlm bench --table`; then for each speed-up a search under it, and `darwinlm bench` of the checkpoint
against the dense model, as many times as --runs says, with the same workload; its median speed-up stands beside the one
that was asked, and the table's prediction beside the measured seconds. Then a search under a parameter target of exactly
as many parameters as the first found, from the same start and with the same tokens: the picture shows what either left
where. Needs an idle machine. With --engine llama.cpp or vllm, table and bench are of that engine. Prints tables, writes
benchmarks/results/speedup.json, where rows of models that are not run again in the same engine stay, and pictures beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import darwinlm
from darwinlm.config import RunConfig, resolve
from darwinlm.database.store import Database
from darwinlm.measure.bench import run_bench
from darwinlm.measure.predicted import predictions
from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.runtime.progress import show_log
from darwinlm.target.latency import LatencyTable
from subjects import pep_llama

HERE = Path(__file__).parent
RESULTS = HERE / "results/speedup.json"
LEVELS = {"demo": {"levels": 10, "multiple_of": 32}, "pep-llama": {"levels": 11, "multiple_of": 8}}
SEARCH = {
    "offspring": 8,
    "survivors": [4, 2, 1],
    "train_tokens": [1024, 2048, 4096],
    "select_tokens": [1024, 2048, 4096],
    "start_tokens": 4096,
    "check_every": 0,
}
BLOCKS = {"sequence_length": 256, "hessian": 256, "train": 128, "select": 64, "held_out": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--models", nargs="+", default=["demo", "pep-llama"], choices=list(LEVELS))
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.5, 2.0])
    parser.add_argument("--stages", nargs="+", default=["prefill"], choices=["prefill", "decode"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--engine", choices=["transformers", "llama.cpp", "vllm"], default="transformers")
    parser.add_argument("--start", choices=["uniform", "linearized"], default="linearized")
    parser.add_argument(
        "--hessian", type=int, default=BLOCKS["hessian"], help="blocks; fewer for a trial of this script"
    )
    args = parser.parse_args()
    show_log()
    places = {
        "demo": (DEMO_MODEL, "stdlib"),
        "pep-llama": (Path(pep_llama.model(args.shared)), pep_llama.text(args.shared)),
    }
    former = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows: list[dict[str, Any]] = [
        row for row in former if row["model"] not in args.models or row["engine"] != args.engine
    ]
    for name in args.models:
        model, data = places[name]
        if not model.is_dir():
            print(f"skipped: there is no '{model}'")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows += measured(args, name, str(model), str(data), Path(scratch))
    report(rows)


def measured(args: argparse.Namespace, name: str, model: str, data: str, scratch: Path) -> list[dict[str, Any]]:
    """All rows of a model."""
    written = 32 if "decode" in args.stages else 4  # the time goes to what is asked for
    bench = {
        "batch_sizes": [args.batch],
        "context_lengths": [args.context],
        "repeats": args.repeats,
        "decode_tokens": written,
        "engine": args.engine,
    }
    path = darwinlm.measure_latency(model, output=scratch / "table", bench=bench, database=LEVELS[name]).path
    table = LatencyTable.load(path)
    blocks = {**BLOCKS, "hessian": args.hessian}
    search = {**SEARCH, "generations": args.generations, "start": args.start}
    common = {
        "data": data,
        "output": str(scratch / "run"),
        "database": LEVELS[name],
        "blocks": blocks,
        "search": search,
    }
    rows = []
    for stage in args.stages:
        for speedup in args.speedups:
            target = {
                "speedup": speedup,
                "workload": stage,
                "batch": args.batch,
                "context": args.context,
                "latency_table": str(path),
            }
            try:
                by_time = darwinlm.prune(model, restart=True, target=target, **common).summary
            except darwinlm.RequestError as fault:
                print(f"{name}, {stage} {speedup}x: {fault}")
                continue
            fast = levels_of(scratch)
            timed = benched(args, [model, str(scratch / "run/model")], resolve({"bench": bench}), table, stage)
            size = {"parameters": by_time["pruned"]["parameters"]}
            by_size = darwinlm.prune(model, restart=True, target=size, **common).summary
            small = levels_of(scratch)
            picture = HERE / f"results/speedup_{name}_{args.engine}_{stage}_{speedup:g}x.png"
            draw({f"{stage} {speedup:g}x": fast, "the same parameters": small}, scratch / "run", picture)
            rows.append(
                {"model": name, "engine": args.engine, "stage": stage, "batch": args.batch, "asked": speedup, **timed}
                | {"predicted_speedup": by_time["achieved"]["limits"]["latency"]["predicted_speedup"]}
                | {"table_errors": [p / m - 1 for t in table.stages if t.work.stage == stage for p, m in t.checks]}
                | {"by_time": by_time["pruned"], "by_size": by_size["pruned"], "differ": differing(fast, small)}
                | {"levels_by_time": fast, "levels_by_size": small, "machine": dict(table.machine)}
            )
    return rows


def levels_of(scratch: Path) -> dict[str, int]:
    return json.loads((scratch / "run/genome.json").read_text())["levels"]


def benched(
    args: argparse.Namespace, models: list[str], config: RunConfig, table: LatencyTable, stage: str
) -> dict[str, Any]:
    """Speed-ups of all runs of the bench, and the prediction's error of the seconds in their median."""
    speedups, errors = [], []
    for _ in range(args.runs):
        found = predictions(run_bench(models, config), table)
        (row,) = [row for row in found if row.times.work.stage == stage and row.measured_speedup is not None]
        speedups.append(row.measured_speedup)
        errors.append(row.error)
    return {
        "measured": statistics.median(speedups),
        "speedups": speedups,
        "prediction_error": statistics.median(errors),
    }


def differing(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Steps between two genomes, and how many more of attention the first one removed."""
    steps = sum(abs(level - other[name]) for name, level in one.items())
    attention = sum(level - other[name] for name, level in one.items() if name.endswith("self_attn"))
    return {"steps": steps, "attention_steps_more": attention}


def draw(genomes: dict[str, dict[str, int]], run: Path, path: Path) -> None:
    """What either genome left of every module, as PNG."""
    ladders = {ladder.name: ladder for ladder in Database.open(run / "database").ladders()}
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, kind in zip(figure.subplots(1, 2, sharey=True), ("self_attn", "mlp")):
        for place, (title, levels) in enumerate(genomes.items()):
            names = [name for name in levels if name.endswith(kind)]
            left = [1 - levels[name] / ladders[name].top for name in names]
            axis.bar([i + 0.4 * place - 0.2 for i in range(len(names))], left, width=0.38, label=title)
        axis.set(title={"self_attn": "attention", "mlp": "MLP"}[kind], xlabel="layer", ylabel="part that is left")
    figure.axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def report(rows: list[dict[str, Any]]) -> None:
    print(
        "| model | engine | stage | asked | predicted | measured, median (all runs) | seconds: error | table's checks |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        runs = ", ".join(f"{speedup:.2f}" for speedup in row["speedups"])
        worst = max(map(abs, row["table_errors"]))
        print(
            f"| {row['model']} | {row['engine']} | {row['stage']} | {row['asked']:g}x | {row['predicted_speedup']:.2f}x | "
            f"{row['measured']:.2f}x ({runs}) | {row['prediction_error']:+.1%} | at most {worst:.1%} |"
        )
    print("| model | engine | target | parameters | KL | against the other: steps apart, of attention more |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        differ = row["differ"]
        for key, title in (("by_time", f"{row['stage']} {row['asked']:g}x"), ("by_size", "the same parameters")):
            found = row[key]
            apart = f"{differ['steps']}, {differ['attention_steps_more']:+d}" if key == "by_time" else ""
            print(
                f"| {row['model']} | {row['engine']} | {title} | {found['parameters']:,} | {found['kl']:.4f} | {apart} |"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
