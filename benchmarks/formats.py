"""Every form of one pruned checkpoint: size, parameters, and how long it takes to load, beside the dense model.

    python benchmarks/formats.py [--level 5] [--repeats 9] [--run runs/formats]

The embedded model, a random genome whose mean is the given level of the demo's 8 and in which modules are absent; sizes
do not ask for a good one, so the database is built on few tokens and nothing is searched. Forms are loaded in turns, by
transformers or llama.cpp, from a warm disk cache, and timed to their first token. Prints a table and writes
benchmarks/results/formats.json.
"""

from __future__ import annotations

import argparse
import json
import operator
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import xllamacpp
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.export.forms import Form
from darwinlm.export.gguf.file import DTYPES
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.source import ModelSource
from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.search.mutation import level_switch
from darwinlm.target.budget import level_budget, uniform

HERE = Path(__file__).parent


def prune(run: Path, level: float) -> dict[str, int]:
    """Write `run`/model; returns the levels."""
    blocks = {"hessian": 32, "train": 4, "select": 4, "held_out": 4, "pool_tokens": 100_000}
    settings = {"blocks": blocks, "search": {"train_tokens": [64] * 3, "select_tokens": [64] * 3}}
    database = darwinlm.build_database(str(DEMO_MODEL), output=str(run), preset="demo", **settings).database
    assembler = Assembler(ModelSource(str(DEMO_MODEL)), database)
    budget, rng = level_budget(assembler.space, level / 8), random.Random(0)
    genome = uniform(budget, rng)
    while sum(map(operator.eq, genome, (ladder.top for ladder in assembler.space.ladders))) < 2:
        genome = level_switch(genome, budget, rng)
    levels = assembler.space.named(genome)
    export_checkpoint(assembler, genome, run / "model", {"levels": "drawn at random"}, {"levels": levels})
    return levels


def forms_of(run: Path) -> list[Form]:
    """The dense model and all forms of the run's checkpoint."""
    dense = ModelSource(str(DEMO_MODEL))
    size = sum(path.stat().st_size for path in set(dense.files.values()))
    canonical, portable = darwinlm.export_checkpoint(str(run / "model"), portable=True).forms
    files = [darwinlm.export_checkpoint(str(run / "model"), format="gguf", dtype=dtype).forms[1] for dtype in DTYPES]
    return [Form("dense", DEMO_MODEL, dense.shape.parameters, size), canonical, portable, *files]


def start_transformers(form: Form) -> None:
    model = AutoModelForCausalLM.from_pretrained(form.path, trust_remote_code=True, use_safetensors=True)
    model.generate(torch.tensor([[1]]), max_new_tokens=1, do_sample=False)


def start_llama_cpp(form: Form) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(form.path)
    params.n_ctx, params.n_parallel, params.verbosity = 512, 1, 0
    params.warmup, params.fit_params = False, False
    xllamacpp.Server(params).handle_completions({"prompt": [1], "n_predict": 1})


def first_token_seconds(forms: list[Form], repeats: int) -> dict[str, list[float]]:
    """Seconds from nothing to a first token, for every form; they take turns, and the first turn does not count."""
    taken: dict[str, list[float]] = {form.name: [] for form in forms}
    for turn in range(repeats + 1):
        for form in forms:
            start: Callable[[Form], None] = start_llama_cpp if form.name.startswith("gguf") else start_transformers
            began = time.perf_counter()
            start(form)
            if turn:
                taken[form.name].append(time.perf_counter() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/formats"))
    parser.add_argument("--level", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers")
    logging.disable_progress_bar()
    genome = prune(args.run, args.level)
    forms = forms_of(args.run)
    seconds = first_token_seconds(forms, args.repeats)
    print(f"levels (attention, MLP, layer by layer): {', '.join(map(str, genome.values()))}")
    print(f"{torch.get_num_threads()} threads; first token: median (least to most) of {args.repeats}")
    print("| form | parameters | weights on disk | first token after |")
    print("|---|---|---|---|")
    rows = []
    for form in forms:
        taken = seconds[form.name]
        middle = statistics.median(taken)
        spread = f"{middle * 1e3:.0f} ms ({min(taken) * 1e3:.0f} to {max(taken) * 1e3:.0f})"
        print(f"| {form.name} | {form.parameters:,} | {form.bytes / 1e6:.2f} MB | {spread} |")
        rows.append(
            {"form": form.name, "parameters": form.parameters, "bytes": form.bytes, "first_token_seconds": taken}
        )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/formats.json").write_text(json.dumps({"levels": genome, "forms": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
