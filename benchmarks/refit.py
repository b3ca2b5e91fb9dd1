"""What the refit after the search gives, on the kind of text that it saw and on others, by genome, text and tokens.

    python benchmarks/refit.py RUN --fit TEXT [TEXT ...] --score TEXT [TEXT ...] [--tokens 16K 64K]
                               [--genomes found uniform GENOME.json ...] [--blocks 8] [--choose-again true false] [--distil 64K]

RUN is a finished run of `darwinlm prune`: its model, database and genome count. Texts are read as --data is, so that a mixture can
be one. Each refit is fitted to blocks that are drawn from a text and judged on others, as `darwinlm refit` does it;
scores are of blocks drawn from each scored text, before and after. With --distil the model as pruned and the refitted one
are distilled on the first text, alike. Prints a table and writes benchmarks/results/refit.json after every row; rows that
are there already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import Tokens, settled
from darwinlm.data.sources import documents
from darwinlm.data.tokens import read_pool
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.judge import JUDGED_TOKENS, judge
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run, opened
from darwinlm.runtime.files import read_json
from darwinlm.runtime.progress import show_log
from subjects.distilled import distilled
from subjects.rows import Row, rows_of

RESULTS = Path(__file__).parent / "results/refit.json"
POOL = 2_000_000
"""Tokens of a text that blocks are drawn from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--fit", nargs="+", required=True)
    parser.add_argument("--score", nargs="+", required=True)
    parser.add_argument("--tokens", type=Tokens, nargs="+", default=[Tokens("16K"), Tokens("64K")])
    parser.add_argument("--genomes", nargs="+", default=["found", "uniform"])
    parser.add_argument("--blocks", type=int, default=8, help="of each scored text")
    parser.add_argument("--choose-again", choices=["true", "false"], nargs="+", default=["true"])
    parser.add_argument("--distil", type=Tokens, default=0, help="tokens")
    args = parser.parse_args()
    show_log()
    with opened(settled({"output": str(args.run)})) as run:
        texts = {text: blocks_of(text, run, args.blocks, held_out=True) for text in args.score}
        held_out = {text: HeldOut(blocks, run.stream) for text, blocks in texts.items()}
        make = functools.partial(row_of, run=run, held_out=held_out)
        rows = rows_of(RESULTS, wanted(args), make)
    report([row for row in rows if (row["run"], row["score"]) == (str(args.run), args.score)], args.score)


def wanted(args: argparse.Namespace) -> Iterator[Row]:
    told = {"run": str(args.run), "score": args.score, "blocks": args.blocks}
    told |= {"distil": int(args.distil), "on": args.fit[0]} if args.distil else {}
    for genome, text, again, tokens in itertools.product(args.genomes, args.fit, args.choose_again, args.tokens):
        yield {**told, "genome": genome, "fit": text, "tokens": int(tokens), "choose_again": again == "true"}


def blocks_of(text: str, run: Run, count: int, *, held_out: bool = False) -> Tensor:
    """(S, T): blocks drawn from the beginning of a text, as far as `POOL` goes; of `stdlib` those that are held out, or not."""
    length, field = run.config.blocks.sequence_length, run.config.blocks.text_field
    pool = read_pool(documents(text, field, held_out=held_out), run.source.tokenizer, length, POOL).blocks
    return run.source.begun(pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))[:count]])


def row_of(asked: Row, run: Run, held_out: dict[str, HeldOut]) -> Row:
    """Scores of a genome, with and without its refit."""
    assembler, genome = Assembler(run.source, run.finished_database()), genome_of(run, asked["genome"])
    length = run.config.blocks.sequence_length
    fitted, judged = max(2, asked["tokens"] // length), max(1, JUDGED_TOKENS // length)
    blocks, refits = blocks_of(asked["fit"], run, fitted + judged), Refits(None, {})
    pruned = assembler.stream(genome, run.device, run.dtype)
    kept = functools.partial(assembler.mlp_columns, genome) if asked["choose_again"] else None
    refit_blocks(refits, run.stream, pruned, kept, blocks[:fitted], run.config.database.batch_sequences)
    judge(refits, run.stream, pruned, blocks[fitted:])
    model = assembler.model(genome, run.device)
    found = {"before": scores(held_out, model)}
    refits.load_into(model)
    found["after"] = scores(held_out, model)
    del model
    if asked.get("distil"):
        for name, each in (("before, distilled", None), ("after, distilled", refits)):
            with tempfile.TemporaryDirectory() as scratch:
                stream = distilled(run, assembler, genome, each, asked["distil"], asked["on"], Path(scratch))
                found[name] = {text: dataclasses.asdict(one.quality(stream)) for text, one in held_out.items()}
    return {"judged": refits.kl, "depth": refits.depth, **found}


def genome_of(run: Run, name: str) -> Genome:
    """The genome that a run found, the uniform one of its target, or that of a file."""
    if name == "uniform":
        return run.first(Assembler(run.source, run.finished_database()).module_widths)
    return run.space.genome(read_json(run.directory.genome if name == "found" else Path(name))["levels"])


def scores(held_out: dict[str, HeldOut], model: Any) -> dict[str, dict[str, Any]]:
    return {text: dataclasses.asdict(each.quality_of_model(model)) for text, each in held_out.items()}


def report(rows: list[Row], texts: list[str]) -> None:
    names = " | ".join(Path(text).stem for text in texts)
    stages = ("before", "after", "before, distilled", "after, distilled")
    print(f"| genome | fitted to | tokens | columns chosen again | depth | KL | {names} |")
    print("|---" * (6 + len(texts)) + "|")
    for row, stage in itertools.product(rows, stages):
        if stage in row:
            cells = " | ".join(f"{row[stage][text]['kl']:.4f} ({row[stage][text]['perplexity']:.2f})" for text in texts)
            again = "yes" if row["choose_again"] else "no"
            print(
                f"| {row['genome']} | {row['fit']} | {row['tokens']:,} | {again} | {row['depth']} | {stage} | {cells} |"
            )


if __name__ == "__main__":
    main()
