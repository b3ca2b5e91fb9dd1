"""Does it help that attention and MLPs exchange parameters? Held-out KL at equal parameters, with exchange and without.

    python benchmarks/exchange.py [--shared ../shared] [--seeds 0 1 2] [--level 4] [--start uniform] [--runs FOLDER]
                                  [--rivals with without]

pep-llama with the settings of recipes/pep_llama_reference.yaml. Without: `target.level`, whose level switches stay within a
kind of module. With: `target.parameters`, exactly those of the uniform model of that level, whose switches are between any
two modules and are then repaired to the budget. Both begin at the same genome and see the same tokens. Prints a table and
writes benchmarks/results/exchange_level<N>_<START>.json. With --runs a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

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
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default nowhere")
    parser.add_argument("--rivals", nargs="+", choices=["with", "without"], default=["without", "with"])
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            for rival in args.rivals:
                rows.append(row := one_run(args, rival, seed, args.runs or Path(scratch)))
                print(
                    f"seed {row['seed']}, {rival} exchange: KL {row['kl']:.4f}, {row['parameters']:,} parameters",
                    flush=True,
                )
    report(args, rows)


def one_run(args: argparse.Namespace, rival: str, seed: int, runs: Path) -> dict[str, Any]:
    """Prune once; what is held out never decides anything."""
    settings = pep_llama.reference_settings(args.shared)
    settings["search"] |= {"start": args.start, "generations": args.generations, "check_every": 0}
    levels = settings["database"]["levels"]
    plan = darwinlm.plan(settings["model"], database=settings["database"], target={"level": args.level})
    settings["target"] = {"level": args.level} if rival == "without" else {"parameters": plan.target.parameters}
    output = runs / f"{rival}_level{args.level}_{args.start}_seed{seed}"
    summary = darwinlm.prune(output=str(output), seed=seed, **settings)
    found = json.loads((output / "genome.json").read_text())["levels"]
    means = {
        kind: sum(level for name, level in found.items() if name.endswith(kind)) / sum(n.endswith(kind) for n in found)
        for kind in ("self_attn", "mlp")
    }
    facts = {key: summary["pruned"][key] for key in ("parameters", "kl", "perplexity")}
    uniform = {"uniform_kl": summary["uniform"]["kl"], "seconds": summary["seconds"]["search"]}
    return {"seed": seed, "rival": rival, **facts, **uniform, "mean_levels": means, "of": levels, "levels": found}


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    print("| seed | exchange | parameters | KL | perplexity | mean level of attention | of MLPs |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["seed"], row["rival"])):
        attention, mlp = row["mean_levels"].values()
        quality = f"{row['kl']:.4f} | {row['perplexity']:.2f}"
        print(f"| {row['seed']} | {row['rival']} | {row['parameters']:,} | {quality} | {attention:.2f} | {mlp:.2f} |")
    for rival in args.rivals:
        kls = [row["kl"] for row in rows if row["rival"] == rival]
        print(f"mean KL {rival} exchange: {sum(kls) / len(kls):.4f}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    values = {"level": args.level, "start": args.start, "generations": args.generations, "rows": rows}
    (results / f"exchange_level{args.level}_{args.start}.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
