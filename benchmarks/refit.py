"""What the refit after the search gives: KL and perplexity before and after, by genome and by tokens.

    python benchmarks/refit.py [--shared ../shared] [--levels 4 6] [--genomes RUN/genome.json ...] [--tokens 16384 65536 131072]
                               [--runs FOLDER] [--choose-again true false]

pep-llama with the settings of recipes/pep_llama_reference.yaml: the uniform genomes of the levels, and those of the files.
Prints a table and writes benchmarks/results/refit.json after every row; rows that are there already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.config import settled
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut
from darwinlm.run.request import Run, opened
from darwinlm.runtime.files import read_json, write_json
from darwinlm.runtime.progress import show_log
from subjects import pep_llama
from subjects.rows import rows_of

RESULTS = Path(__file__).parent / "results/refit.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--levels", type=int, nargs="*", default=[4, 6])
    parser.add_argument("--genomes", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 65_536, 131_072])
    parser.add_argument("--choose-again", choices=["true", "false"], nargs="+", default=["true", "false"])
    parser.add_argument("--runs", type=Path, help="where the database is kept; by default nowhere")
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    show_log()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        rows = rows_of(RESULTS, wanted(args), lambda asked: row_of(asked, args.shared, folder))
    print(
        "| genome | tokens | columns chosen again | KL before | after | perplexity before | after |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        before, after = row["before"], row["after"]
        print(
            f"| {row['genome']} | {row['tokens']:,} | {'yes' if row['choose_again'] else 'no'} | {before['kl']:.4f} | "
            f"{after['kl']:.4f} | {before['perplexity']:.2f} | {after['perplexity']:.2f} |"
        )


def wanted(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for genome in [*(f"uniform level {level}" for level in args.levels), *map(str, args.genomes)]:
        for again in args.choose_again:
            for tokens in args.tokens:
                yield {"genome": genome, "tokens": tokens, "choose_again": again == "true"}


def row_of(asked: dict[str, Any], shared: Path, folder: Path) -> dict[str, Any]:
    """Scores of a genome on the held-out text, with and without its refit."""
    values = {**pep_llama.reference_settings(shared), "output": str(folder / "refit")}
    values["refit"] = {"tokens": asked["tokens"], "choose_again": asked["choose_again"]}
    darwinlm.build_database(**values)
    with opened(settled(values)) as run:
        assembler = Assembler(run.source, run.finished_database())
        genome = genome_of(run, asked["genome"])
        write_json(run.directory.genome, {"levels": run.space.named(genome)})
        held_out, model = HeldOut(run.splits.held_out, run.stream), assembler.model(genome, run.device)
    before = held_out.quality_of_model(model)
    darwinlm.refit_genome(**values).refits.load_into(model)
    after = held_out.quality_of_model(model)
    return {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)}


def genome_of(run: Run, name: str) -> Genome:
    """A uniform genome by its level, or that of a file."""
    if name.startswith("uniform level "):
        level = int(name.rsplit(" ", 1)[1])
        return tuple(min(level, ladder.top) for ladder in run.ladders)
    return run.space.genome(read_json(Path(name))["levels"])


if __name__ == "__main__":
    main()
