"""What one shape for all layers costs: the stock shape beside the free one and Minitron's rules, at equal parameters.

    python benchmarks/stock_shape.py [--levels 2,4,6] [--start-tokens 8192] [--refit-tokens 65536] [--runs FOLDER]
                                     [--name smollm2 --model FOLDER --data FILE [--held-out-data FILE] [--preset quick]]

By default the embedded model with preset demo. At every level the methods of `darwinlm compare` get the parameters of the
uniform model; then both searched genomes are refitted on their own inputs. Prints a table and writes
benchmarks/results/stock_shape_NAME.json. With --runs a killed measurement goes on from where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.comparison.table import Cell
from darwinlm.config import settled
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.run.request import opened
from darwinlm.runtime.files import write_json
from darwinlm.runtime.progress import show_log
from subjects import named

METHODS = ("minitron", "minitron_depth", "darwinlm_parameters", "darwinlm_stock")
REFITTED = ("darwinlm_parameters", "darwinlm_stock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named.add_flags(parser)
    parser.add_argument("--levels", default="2,4,6", help="of 8")
    parser.add_argument("--start-tokens", type=int, default=8192, help="that the linearized start scores on")
    parser.add_argument("--refit-tokens", type=int, default=65_536)
    args = parser.parse_args()
    show_log()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(settings_of(args), args.levels, (args.runs or Path(scratch)) / args.name)
    write_json(Path(__file__).parent / f"results/stock_shape_{args.name}.json", rows)
    print("| level | parameters | method | shape | perplexity | KL | refitted: perplexity | KL |\n" + "|---" * 8 + "|")
    for row in rows:
        after = row.get("refitted")
        told = f"{after['perplexity']:.2f} | {after['kl']:.4f}" if after else " | "
        found = row["quality"]
        print(
            f"| {row['level']:g} | {found['parameters']:,} | {row['title']} | {row['shape']} | {found['perplexity']:.2f} | "
            f"{found['kl']:.4f} | {told} |"
        )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    more = {"preset": args.preset, "refit": {"tokens": args.refit_tokens}, "database": {"levels": 8}}
    return {**named.settings_of(args), **more, "search": {"generations": 0, "start_tokens": args.start_tokens}}


def measure(settings: dict[str, Any], levels: str, run: Path) -> list[dict[str, Any]]:
    settings = {**settings, "output": str(run)}
    found = darwinlm.compare(methods=",".join(METHODS), levels=levels, keep_models=True, **settings).comparison
    rows = []
    for cell in found.cells:
        row = {"level": cell.level, "budget": found.budgets[cell.level], "method": cell.method, "title": cell.title}
        row |= {"levels": cell.levels, "shape": shape_of(cell), "seconds": cell.search_seconds}
        row["quality"] = dataclasses.asdict(cell.quality)
        if cell.method in REFITTED:
            row["refitted"] = dataclasses.asdict(refitted(settings, cell))
        rows.append(row)
    return rows


def refitted(settings: dict[str, Any], cell: Cell) -> Quality:
    """A cell's model after the refit, on the same held-out text."""
    with opened(settled({"output": settings["output"]})) as run:
        assembler = Assembler(run.source, run.finished_database())
        model = assembler.model(run.space.genome(cell.levels), run.device, run.dtype)
        write_json(run.directory.genome, {"levels": cell.levels})
        held_out = HeldOut(run.splits.held_out, run.stream)
    refits = darwinlm.refit_genome(**settings).refits
    refits.load_into(model)
    return held_out.quality_of_model(model)


def shape_of(cell: Cell) -> str:
    """Layers with something left, and the parts that are left of attention and MLP in them."""
    by_layer: dict[str, dict[str, float]] = {}
    for name, kept in cell.kept.items():
        layer, module = name.removeprefix("model.layers.").split(".", 1)
        by_layer.setdefault(layer, {})[module] = kept
    left = [modules for modules in by_layer.values() if any(modules.values())]
    parts = []
    for module in left[0]:
        shares = [modules[module] for modules in left]
        same = max(shares) == min(shares)
        parts.append(f"{module} {shares[0]:.0%}" if same else f"{module} {min(shares):.0%} to {max(shares):.0%}")
    return f"{len(left)} layers, {', '.join(parts)}"


if __name__ == "__main__":
    main()
