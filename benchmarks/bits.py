"""Width and bits in one search, beside bits alone, structure alone and one format, at equal bytes of the GGUF file.

    python benchmarks/bits.py [--formats q8_0,q5_0,q4_0] [--embedding q8_0] [--at q5_0,q4_0] [--shares 0.85,0.7]
                              [--seeds 1] [--runs FOLDER] [--start-tokens 4096] [--rounds 2]
                              [--refit-tokens 16384] [--engine-blocks 2] [--repeats 9] [--blocks 256 256 128 64 96]
                              [--name smollm2 --model FOLDER --data FILE [--held-out-data FILE] [--preset quick]]

By default the embedded model with preset demo. Sizes are those of the dense model in some formats, and shares of the
smallest. At each the methods of `darwinlm compare --formats`, whose models are then refitted alike. KL and perplexity are
of held-out text, before and after the refit. The file of every row is written, and llama.cpp's distributions on some
held-out blocks are compared with those of the checkpoint; at the end all files and the dense model in f16 read and write
in llama.cpp in turn. With --runs a killed measurement goes on from where it was. Prints a table and writes
benchmarks/results/bits_NAME.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from darwinlm.comparison.cells import Place, Training, Workbench, finished_cell, require_same_cell
from darwinlm.comparison.methods.formats import smallest_whole
from darwinlm.comparison.methods.registry import METHODS, methods_named
from darwinlm.config import BenchConfig, settled
from darwinlm.export.formats import MIXED
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome
from darwinlm.measure.bench import run_bench
from darwinlm.measure.quality import Quality
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run, opened
from darwinlm.runtime.files import read_json, sha256_of, write_json
from darwinlm.runtime.progress import log, show_log
from subjects import named

RESULTS = Path(__file__).parent / "results"
STRIDE = 16
"""Tokens between places at which llama.cpp is asked."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named.add_flags(parser)
    parser.add_argument("--formats", default="q8_0,q5_0,q4_0")
    parser.add_argument("--embedding", default="q8_0")
    parser.add_argument("--at", default="q5_0,q4_0", help="formats whose sizes of the dense model are asked")
    parser.add_argument("--shares", default="0.85,0.7", help="of the bytes of the dense model in the smallest format")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--start-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--refit-tokens", type=int, default=16_384)
    parser.add_argument("--engine-blocks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of the speed; 0 leaves it out")
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
        if args.repeats:
            bench.measure_speed(rows)
            write_json(RESULTS / f"bits_{args.name}.json", rows)
    told = "asked, bytes|method|file, bytes|parameters|KL|perplexity|refitted: KL|perplexity|KL of llama.cpp to it"
    told += "|prefill, decode against f16"
    print(f"| {' | '.join(told.split('|'))} |\n" + "|---" * 10 + "|")
    for row in rows:
        sizes = f"| {row['asked']:,} | {METHODS[row['method']].title} | {row['file']:,} | {row['parameters']:,}"
        found = [(one["kl"], one["perplexity"]) for one in (row, row["refitted"])]
        scores = " | ".join(f"{kl:.4f} | {perplexity:.2f}" for kl, perplexity in found)
        speed = ", ".join(f"{row[stage]:.2f}x" for stage in ("prefill", "decode") if stage in row)
        print(f"{sizes} | {scores} | {row['engine_kl']:.1e} | {speed} |")


def settings_of(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    target = {"memory": "50%", "formats": args.formats.split(","), "embedding_format": args.embedding, "context": 0}
    search = {"generations": 0, "start_tokens": args.start_tokens, "start_rounds": args.rounds}
    output = str((args.runs or scratch) / args.name)
    return {**named.settings_of(args), "target": target, "search": search, "output": output}


class Bench:
    """One database, and all rows that come from it."""

    def __init__(self, run: Run, args: argparse.Namespace) -> None:
        self.run, self.args, self.shared = run, args, Workbench(run)
        self.assembler = self.shared.assembler()
        self.files = run.directory.path / "files"

    def rows(self) -> Iterator[dict[str, Any]]:
        space, limit = self.assembler.space, self.run.target.budget(self.assembler.module_widths).limits[0]
        dense = {f: tuple(ladder.rung(0, f) for ladder in space.ladders) for f in space.formats}
        sizes = [limit.spent(dense[format_]) for format_ in self.args.at.split(",")]
        sizes += [int(float(share) * sizes[-1]) for share in self.args.shares.split(",")]
        methods = methods_named("all", in_formats=True)
        for size, seed, method in product(sizes, range(self.args.seeds), methods):
            too_small = method == "formats_alone" and limit.spent(smallest_whole(space)) > size
            if too_small or (seed and not METHODS[method].searches):
                continue
            log.info("%d bytes, %s, seed %d.", size, METHODS[method].title, seed)
            place, untrained = Place(method, size, seed), Training(0, 0.0)
            require_same_cell(self.run, place, untrained)
            cell = finished_cell(self.shared, place, untrained)
            genome = space.genome_of(cell.levels, cell.formats)
            name = sha256_of([cell.levels, cell.formats])[:16]
            found = {"asked": size, "method": method, "seed": seed, "bytes": cell.memory, "name": name}
            if not (known := self.files / f"{name}.json").exists():
                write_json(known, self.refitted(genome, cell.quality, known.with_suffix(".gguf")))
            scored = {"parameters": cell.quality.parameters, "kl": cell.quality.kl}
            scored |= {"perplexity": cell.quality.perplexity, "seconds": cell.search_seconds}
            yield {**found, **scored, **read_json(known), "levels": cell.levels, "formats": cell.formats}

    def refitted(self, genome: Genome, before: Quality, file: Path) -> dict[str, Any]:
        """Scores of a genome's model after its refit, its file, and what llama.cpp computes from that."""
        run, model, refits = self.run, self.assembler.model(genome, self.run.device, self.run.dtype), Refits(None, {})
        tokens = run.splits.hessian[: max(2, self.args.refit_tokens // run.splits.hessian.shape[1])]
        pruned = self.assembler.stream(genome, run.device, run.dtype)
        columns, in_format = (partial(each, genome) for each in (self.assembler.mlp_columns, self.assembler.in_format))
        refit_blocks(refits, run.stream, pruned, columns, tokens, 8, in_format=in_format)
        refits.load_into(model)
        after = self.shared.held_out().quality_of_model(model)
        better = refits if (after.kl or 0) < (before.kl or 0) else None
        with tempfile.TemporaryDirectory() as scratch:
            made_from = run.made_from(genome, self.assembler.database)
            export_checkpoint(self.assembler, genome, Path(scratch) / "model", {}, made_from, better)
            source = ModelSource(f"{scratch}/model")
            write_gguf(source, file, MIXED)
            whole = load_whole(source, run.device, torch.float32)
            engine = engine_kl(whole, file, run.splits.held_out[: self.args.engine_blocks])
        refitted = {"kl": after.kl, "perplexity": after.perplexity}
        return {"file": file.stat().st_size, "refitted": refitted, "engine_kl": engine}

    def measure_speed(self, rows: list[dict[str, Any]]) -> None:
        """Medians of how many times faster than the dense model in f16 each row's file reads and writes, into the rows."""
        write_gguf(self.run.source, dense := self.files / "dense.gguf", "f16")
        names = list(dict.fromkeys(row["name"] for row in rows))
        length = self.run.config.blocks.sequence_length
        bench = BenchConfig(engine="llama.cpp", context_lengths=[length], repeats=self.args.repeats)
        models = [str(dense), *(str(self.files / f"{name}.gguf") for name in names)]
        measured = run_bench(models, replace(self.run.config, bench=bench)).measurements[1:]
        for row in rows:
            (speed,) = measured[names.index(row["name"])]
            for stage, times in (("prefill", speed.prefill_speedup), ("decode", speed.decode_speedup)):
                row[stage] = times.median if times else None


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
