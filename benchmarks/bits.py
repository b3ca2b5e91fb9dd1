"""Width and bits in one search, beside bits alone, structure alone and uniform formats, at equal bytes of the GGUF file.

    python benchmarks/bits.py [--formats q8_0,q5_0,q4_0] [--embedding q8_0] [--at q5_0,q4_0] [--shares 0.85,0.7]
                              [--then q4_0] [--seeds 1] [--runs FOLDER] [--start-tokens 4096] [--rounds 2]
                              [--refit-tokens 16384] [--engine-blocks 2] [--blocks 256 256 128 64 96]
                              [--name smollm2 --model FOLDER --data FILE [--held-out-data FILE] [--preset quick]]

By default the embedded model with preset demo. Sizes are those of the dense model in some formats, and shares of the
smallest. At each: the dense model in the largest format that fits; structure searched in the checkpoint's own numbers and
then quantized (to one of the formats of --then; the one with the least KL on the search's tokens counts); formats searched
at the dense widths; both at once. All are searched alike, by linearized costs and the real KL, and refitted alike. KL and
perplexity are of held-out text, before and after the refit. The file of every row is written, and llama.cpp's distributions
on some held-out blocks are compared with those of the checkpoint. With --runs a killed measurement goes on from where it
was. Prints a table and writes benchmarks/results/bits_NAME.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from darwinlm.assemble import Assembler
from darwinlm.config import settled
from darwinlm.export.formats import MIXED
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run, opened
from darwinlm.run.stages import database_stage, make_teacher
from darwinlm.runtime.files import write_json
from darwinlm.runtime.progress import log, show_log
from darwinlm.runtime.seeds import python_random
from darwinlm.search.fitness import Pools
from darwinlm.search.start import ModelMeasures, StartRecord, linearized_start
from darwinlm.target.budget import Budget, uniform
from subjects import named

RESULTS = Path(__file__).parent / "results"
STRIDE = 16
"""Tokens between places at which llama.cpp is asked."""
METHODS = {
    "uniform": "uniform format, dense",
    "structure": "structure searched, then quantized",
    "bits": "formats searched",
    "joint": "structure and formats searched at once",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named.add_flags(parser)
    parser.add_argument("--formats", default="q8_0,q5_0,q4_0")
    parser.add_argument("--embedding", default="q8_0")
    parser.add_argument("--at", default="q5_0,q4_0", help="formats whose sizes of the dense model are asked")
    parser.add_argument("--then", default="q4_0", help="formats that a searched structure is quantized to")
    parser.add_argument("--shares", default="0.85,0.7", help="of the bytes of the dense model in the smallest format")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--start-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--refit-tokens", type=int, default=16_384)
    parser.add_argument("--engine-blocks", type=int, default=2)
    args = parser.parse_args()
    show_log()
    with (
        tempfile.TemporaryDirectory() as scratch,
        opened(settled(settings_of(args, Path(scratch)), preset=args.preset)) as run,
    ):
        bench = Bench(run, args)
        rows = []
        for row in bench.rows():
            rows.append(row)
            print(json.dumps(row), flush=True)
            write_json(RESULTS / f"bits_{args.name}.json", rows)
    told = "asked, bytes|method|file, bytes|parameters|KL|perplexity|refitted: KL|perplexity|KL of llama.cpp to it"
    print(f"| {' | '.join(told.split('|'))} |\n" + "|---" * 9 + "|")
    for row in rows:
        sizes = f"| {row['asked']:,} | {METHODS[row['method']]} | {row['file']:,} | {row['parameters']:,}"
        found = [(one["kl"], one["perplexity"]) for one in (row, row["refitted"])]
        scores = " | ".join(f"{kl:.4f} | {perplexity:.2f}" for kl, perplexity in found)
        print(f"{sizes} | {scores} | {row['engine_kl']:.1e} |")


def settings_of(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    target = {"memory": "50%", "formats": args.formats.split(","), "embedding_format": args.embedding, "context": 0}
    search = {"generations": 0, "start_tokens": args.start_tokens, "start_rounds": args.rounds}
    output = str((args.runs or scratch) / args.name)
    return {**named.settings_of(args), "target": target, "search": search, "output": output}


class Bench:
    """One database, and all rows that come from it."""

    def __init__(self, run: Run, args: argparse.Namespace) -> None:
        self.run, self.args, self.database = run, args, database_stage(run)
        self.both = run.assembler(self.database, cache_bytes=2 << 30)
        self.plain = Assembler(run.source, self.database, cache_bytes=1 << 30)
        self.teacher = make_teacher(run)
        self.held_out = HeldOut(run.splits.held_out, run.stream)
        self.ladders, self.formats = self.both.space.ladders, self.both.space.formats[1:]
        self.known: dict[Genome, dict[str, Any]] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        limit = self.budget(1 << 62).limits[0]
        sizes = [limit.spent(self.dense_in(format_)) for format_ in self.args.at.split(",")]
        sizes += [int(float(share) * sizes[-1]) for share in self.args.shares.split(",")]
        for size in sizes:
            for seed in range(self.args.seeds):
                for method in METHODS:
                    if method == "uniform" and seed:
                        continue
                    if (genome := getattr(self, method)(size, seed)) is not None:
                        log.info("%d bytes, %s, seed %d.", size, METHODS[method], seed)
                        scored = self.scored(genome)
                        yield {"asked": size, "method": method, "seed": seed, "bytes": limit.spent(genome), **scored}

    def budget(self, size: int) -> Budget:
        asked = dataclasses.replace(self.run.config.target, memory=size)
        return dataclasses.replace(self.run.target, asked=asked).budget(self.both.module_widths)

    def dense_in(self, format_: str) -> Genome:
        return tuple(ladder.rung(0, format_) for ladder in self.ladders)

    def uniform(self, size: int, seed: int) -> Genome | None:
        budget = self.budget(size)
        return next((g for g in map(self.dense_in, self.formats) if budget.within(g)), None)

    def joint(self, size: int, seed: int) -> Genome:
        return self.searched(self.both, self.budget(size), "joint", size, seed)

    def bits(self, size: int, seed: int) -> Genome | None:
        if self.uniform(size, seed) is None:
            return None
        budget, each = self.budget(size), len(self.formats) + 1
        limit, beyond = budget.limits[0], size + 1  # what costs more than there is, is never taken
        costs = tuple(tuple(cost if rung < each else beyond for rung, cost in enumerate(row)) for row in limit.costs)
        budget = dataclasses.replace(budget, limits=(dataclasses.replace(limit, costs=costs),))
        return self.searched(self.both, budget, "bits", size, seed)

    def structure(self, size: int, seed: int) -> Genome | None:
        limit, found = self.budget(size).limits[0], []
        for format_ in self.args.then.split(","):
            if limit.spent(self.dense_in(format_)) <= size:  # nothing is to go
                found.append(self.dense_in(format_))
                continue
            levels = [range(ladder.level(ladder.top) + 1) for ladder in self.ladders]
            rungs = [
                [min(ladder.top, ladder.rung(level, format_)) for level in each]
                for ladder, each in zip(self.ladders, levels)
            ]
            costs = tuple(tuple(row[rung] for rung in each) for row, each in zip(limit.costs, rungs))
            budget = Budget((dataclasses.replace(limit, costs=costs),), self.plain.space.present)
            pruned = self.searched(self.plain, budget, f"structure_{format_}", size, seed)
            found.append(tuple(each[level] for each, level in zip(rungs, pruned)))
        kls = self.measures(self.both, seed).kls(found)
        return found[kls.index(min(kls))]

    def measures(self, assembler: Assembler, seed: int) -> ModelMeasures:
        run = self.run
        pools = Pools(run.splits.train, self.teacher, run.stream)
        return ModelMeasures(assembler, pools, run.config.search, seed)

    def searched(self, assembler: Assembler, budget: Budget, name: str, size: int, seed: int) -> Genome:
        file = self.run.directory.path / f"bits/{name}_{size}_{seed}.json"
        asked = {"start_tokens": self.args.start_tokens, "formats": self.args.formats, "embedding": self.args.embedding}
        record, begin = StartRecord(file, assembler.space, asked), uniform(budget, python_random(seed, "start"))
        measures, rounds = self.measures(assembler, seed), self.run.config.search.start_rounds
        return linearized_start(begin, assembler.space.present, budget, measures, rounds, record)

    def scored(self, genome: Genome) -> dict[str, Any]:
        if genome in self.known:
            return self.known[genome]
        run, model = self.run, self.both.model(genome, self.run.device, self.run.dtype)
        before, refits = self.held_out.quality_of_model(model), Refits(None, {})
        tokens = run.splits.hessian[: max(2, self.args.refit_tokens // run.splits.hessian.shape[1])]
        block = partial(self.both.block, genome, device=run.device, dtype=run.dtype)
        columns, in_format = partial(self.both.mlp_columns, genome), partial(self.both.in_format, genome)
        embedded = BlockStream(self.both.embedded, run.device, run.dtype)
        refit_blocks(refits, run.stream, block, columns, tokens, 8, None, embedded, in_format)
        refits.load_into(model)
        after = self.held_out.quality_of_model(model)
        with tempfile.TemporaryDirectory() as scratch:
            folder, file = Path(scratch) / "model", Path(scratch) / "model.gguf"
            record = run.made_from(genome, self.database)
            export_checkpoint(
                self.both, genome, folder, {}, record, refits if (after.kl or 0) < (before.kl or 0) else None
            )
            write_gguf(ModelSource(str(folder)), file, MIXED)
            engine = engine_kl(
                load_whole(ModelSource(str(folder)), run.device, torch.float32),
                file,
                run.splits.held_out[: self.args.engine_blocks],
            )
            size = file.stat().st_size
        self.known[genome] = {
            "file": size,
            "parameters": before.parameters,
            "kl": before.kl,
            "perplexity": before.perplexity,
            "refitted": {"kl": after.kl, "perplexity": after.perplexity},
            "engine_kl": engine,
            "levels": self.both.space.levels_of(genome),
            "formats": self.both.space.formats_of(genome),
        }
        return self.known[genome]


@torch.no_grad()
def engine_kl(model: Any, file: Path, blocks: torch.Tensor) -> float:
    """KL of llama.cpp's distributions to those of the checkpoint in transformers, after every `STRIDE` tokens of the blocks."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), blocks.shape[1] + 8, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup, params.fit_params, params.verbosity = False, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, found = xllamacpp.Server(params), []
    asked = {"n_predict": 1, "temperature": 0, "cache_prompt": True, "logit_bias": [[_plain_token(server), 1000]]}
    for block in blocks:
        truths = model(block[None]).logits[0].float().log_softmax(-1)
        for end in range(STRIDE, len(block), STRIDE):
            truth, told = truths[end - 1], torch.full_like(truths[0], float("nan"))
            answer = _post(server, "/completion", {**asked, "prompt": block[:end].tolist(), "n_probs": len(truth)})
            for entry in answer["completion_probabilities"][0]["top_logprobs"]:
                told[entry["id"]] = entry["logprob"]
            found.append(float((truth.exp() * (truth - told)).sum()))
    return sum(found) / len(found)


def _plain_token(server: Any) -> int:
    """One that ends no text and is whole UTF-8: what is written does not matter, and must not be cut."""
    return _post(server, "/tokenize", {"content": "a", "add_special": False})["tokens"][-1]


def _post(server: Any, path: str, request: dict[str, Any]) -> Any:
    body, header = json.dumps(request).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, body, header)) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
