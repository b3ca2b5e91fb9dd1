"""Everything that needs a GPU, checked and measured by one command within 9 minutes.

    python benchmarks/gpu.py [--out gpu.json] [--device cuda] [--small]

Random weights in the shapes of Llama-3.1-8B, of as many layers as are asked for; needs torch, transformers, safetensors, numpy
and the sources beside this file, no installation and no network. What is missing, fails or has no time left is said in the
result, which is written after every part. Without a GPU it says so and ends. `--device cpu --small` tries the program itself.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from darwinlm.assemble import Assembler
from darwinlm.config import BlocksConfig, DatabaseConfig, RunConfig, SearchConfig
from darwinlm.cost import plan_memory, trial_memory
from darwinlm.database.build import build_database
from darwinlm.database.columns import choose_columns, mirror, update_lower
from darwinlm.database.levels import ladders
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.judge import judge
from darwinlm.refit.store import Refits
from darwinlm.runtime import ranks
from darwinlm.runtime.device import choose_device, device_name
from darwinlm.runtime.placement import Placement
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Pools, Teacher
from darwinlm.search.selection import TrainedFitness
from darwinlm.search.trial import Trial

SECONDS = 500
"""After which no part begins."""
LLAMA = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
SMALL = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 8}


class Bench:
    """What the parts share: the device, sizes, a checkpoint and its database, made when they are first asked for."""

    def __init__(self, device: torch.device, small: bool, folder: Path) -> None:
        self.device, self.small, self.folder = device, small, folder
        self.layers, self.length = (2, 32) if small else (4, 4096)
        self.levels = DatabaseConfig(levels=4, multiple_of=8) if small else DatabaseConfig(levels=8)
        self.search = SearchConfig(
            offspring=6,
            survivors=[3, 2, 1],
            train_tokens=[n * self.length for n in (1, 2, 4)],
            select_tokens=[self.length] * 3,
            sequence_tokens=0,
        )

    def source(self) -> ModelSource:
        if not (self.folder / "config.json").exists():
            config = AutoConfig.for_model(
                "llama", num_key_value_heads=self.heads // 4, num_hidden_layers=self.layers, **self.shape
            )
            config.max_position_embeddings = self.length
            torch.manual_seed(0)
            with self.device:
                model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(self.folder)
        return ModelSource(str(self.folder))

    @property
    def shape(self) -> dict[str, int]:
        return SMALL if self.small else LLAMA

    @property
    def heads(self) -> int:
        return self.shape["num_attention_heads"]

    def tokens(self, blocks: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.shape["vocab_size"], (blocks, self.length), generator=generator)

    def stream(self) -> BlockStream:
        return BlockStream(self.source(), self.device, torch.bfloat16)

    def database(self, name: str = "database") -> Database:
        folder = self.folder / name
        if (folder / "manifest.json").exists():
            return Database.open(folder)
        stream, made = self.stream(), Database(folder, {})
        place = Placement(self.device, folder, "host")  # pinned
        rungs = ladders(stream.source.shape, self.levels)
        build_database(made, rungs, stream, self.tokens(8, 1), self.levels, place)
        return made

    def middle(self) -> tuple[int, ...]:
        return tuple(ladder.top // 2 for ladder in ladders(self.source().shape, self.levels))


def graphs(bench: Bench) -> dict[str, Any]:
    """Columns that the device's captured steps choose, against those of the CPU."""
    found = {}
    for rows, columns in [(16, 64)] if bench.small else [(1024, 2816), (4096, 11008)]:
        count = columns // 4 if bench.small else 512
        generator = torch.Generator(bench.device).manual_seed(columns)
        weight = torch.randn(rows, columns, device=bench.device, generator=generator)
        inputs = torch.randn(2 * columns, columns, device=bench.device, generator=generator)
        hessian = inputs.T @ inputs / len(inputs) + 0.01 * torch.eye(columns, device=bench.device)
        inverse, moment = torch.linalg.inv(hessian), weight.T @ weight
        copies = [(inverse.to(to, copy=True), moment.to(to, copy=True), count) for to in (bench.device, "cpu")]
        (ours, seconds), (truth, on_host) = (timed(functools.partial(choose_columns, *asked)) for asked in copies)
        differ = [a != b for a, b in zip(ours, truth)]
        shared = len(set(ours) & set(truth)) / count
        require(shared > 0.98, f"only {shared:.3f} of the columns are those of the CPU")
        first = differ.index(True) if any(differ) else count
        found[f"{rows}x{columns}"] = {"seconds": seconds, "cpu_seconds": on_host, "alike": first, "shared": shared}
    return found


def hessians(bench: Bench) -> dict[str, Any]:
    """A float32 sum of products against float64: TF32 would be off by 1e-3."""
    width = 64 if bench.small else 4096
    x = torch.randn(4 * width, width, device=bench.device)
    ours = torch.zeros(width, width, device=bench.device)
    _, seconds = timed(lambda: update_lower(ours, x, x, 1 / len(x)))
    mirror(ours)
    truth = x.double().T @ x.double() / len(x)
    error = ((ours - truth).norm() / truth.norm()).item()
    require(error < 2e-5, f"the products are off by {error:.1e}")
    return {"seconds": seconds, "relative_error": error}


def trials(bench: Bench) -> dict[str, Any]:
    """Training steps of candidates in a row: seconds, the peak against the plan, what stays behind, survivors that wait."""
    assembler, pool, found = Assembler(bench.source(), bench.database()), bench.tokens(4, 2), {}
    genome, left = bench.middle(), []
    for number in range(4):
        trial = Trial(assembler.model(genome, bench.device, torch.bfloat16), 1e-5, 1, torch.bfloat16)
        trial.train(pool, [(0, bench.length)])
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _, found["step_seconds"] = timed(lambda trial=trial: trial.train(pool, [(1, bench.length)]))
        if bench.device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
        if number == 0:
            before = [tensor.clone() for tensor in trial.tensors()]
            (_, found["wait_seconds"]), (_, found["return_seconds"]) = timed(trial.wait), timed(trial.come_back)
            require(all(map(torch.equal, before, trial.tensors())), "a survivor came back otherwise than it went")
            del before
        del trial
        left.append(allocated(bench.device))
    require(left[-1] <= left[1], f"candidates leave memory behind: {left}")
    shape = assembler.shape(genome)
    found["planned_bytes"] = trial_memory(shape, bench.search, bench.length, torch.bfloat16)
    return {**found, "parameters": shape.parameters, "left_bytes": left}


def no_numbers(bench: Bench) -> dict[str, Any]:
    """A weight that is no number ends the trial, whatever bits this device writes for it."""
    model = Assembler(bench.source(), bench.database()).model(bench.middle(), bench.device, torch.bfloat16)
    trial = Trial(model, 1e-5, 1, torch.bfloat16)
    norm = model.model.norm.weight
    (norm * (torch.zeros_like(norm) / 0)).sum().backward()  # a gradient without a number
    require(bool(norm.isnan().all()), "a gradient that is no number left a weight that is one")
    try:
        trial.train(bench.tokens(1, 3), [(0, bench.length)])
    except RequestError as fault:
        return {"said": str(fault)}
    raise RuntimeError("a loss that is no number went unnoticed")


def generation(bench: Bench) -> dict[str, Any]:
    """A generation of the search with training, in bfloat16; and the same scores without survivors."""
    source, stream = bench.source(), bench.stream()
    select, train = bench.tokens(4, 4), bench.tokens(8, 5)
    teacher = Teacher(select, stream.final_hidden(select), source.head().to(bench.device, torch.float32))
    assembler = Assembler(source, bench.database())
    parent, found, scores = bench.middle(), {}, {}
    children = [(*parent[:i], parent[i] + 1, *parent[i + 1 :]) for i in range(min(len(parent), 6))]
    for kept in (True, False):
        config = replace(bench.search, continue_training=kept)
        fitness = TrainedFitness(assembler, Pools(train, teacher, stream), config, 0, torch.bfloat16)

        def run(fitness: TrainedFitness = fitness, config: SearchConfig = config) -> list[torch.Tensor]:
            return [
                fitness(Step(children, parent, stage, 0, i, i == len(config.stages) - 1)).cpu()
                for i, stage in enumerate(config.stages)
            ]

        scores[kept], found["seconds" if kept else "seconds_anew"] = timed(run)
    gap = max((a - b).abs().max().item() for a, b in zip(scores[True], scores[False]))
    return {**found, "largest_gap_of_scores": gap, "kl": [score.mean().item() for score in scores[True]]}


def refit(bench: Bench) -> dict[str, Any]:
    """A genome refitted, with the columns of its MLPs chosen again, and judged; the peak beside what is predicted of it."""
    genome, tokens, stream = bench.middle(), bench.tokens(4, 6), bench.stream()
    assembler, refits = Assembler(bench.source(), bench.database()), Refits(None, {})
    pruned = assembler.stream(genome, bench.device, torch.bfloat16)
    kept = functools.partial(assembler.mlp_columns, genome)
    held = allocated(bench.device)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    _, seconds = timed(functools.partial(refit_blocks, refits, stream, pruned, kept, tokens, 1))
    peak = torch.cuda.max_memory_allocated(bench.device) - held if bench.device.type == "cuda" else 0
    judge(refits, stream, pruned, bench.tokens(2, 7))
    worse = [name for name, found in refits.matrices.items() if found.after > found.before]
    require(not worse, f"a refit made worse: {worse}")
    blocks = BlocksConfig(sequence_length=bench.length)
    config = RunConfig(database=replace(bench.levels, batch_sequences=1), blocks=blocks)
    told = plan_memory(stream.source.shape, pruned.shape, config, 2, torch.bfloat16, on_host=False).refit
    exchanged = sum(found.exchanged for found in refits.matrices.values())
    return {"seconds": seconds, "exchanged": exchanged, "peak_bytes": peak, "predicted_bytes": told, "kl": refits.kl}


def two_ranks(bench: Bench) -> dict[str, Any]:
    """The database of two ranks against that of one."""
    if bench.device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"left out": "one GPU"}
    one = bench.database()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    command += ["--rank-of", str(bench.folder), "--device", bench.device.type, *(["--small"] if bench.small else [])]
    done, seconds = timed(lambda: subprocess.run(command, capture_output=True, text=True, timeout=240))
    require(done.returncode == 0, done.stderr[-2000:])
    two, alike = Database.open(bench.folder / "of_ranks"), []
    require(list(one.modules) == list(two.modules), "the ranks made other modules")
    for ladder in one.ladders():
        kept = [set(made.kept(ladder.name, ladder.top // 2).tolist()) for made in (one, two)]
        alike.append(len(kept[0] & kept[1]) / max(1, len(kept[0])))
    require(min(alike) > 0.98, f"of the columns kept are alike {alike}")
    return {"seconds": seconds, "alike": alike}


PARTS: list[Callable[[Bench], dict[str, Any]]] = [graphs, hessians, trials, no_numbers, generation, refit, two_ranks]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and its seconds."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    began = time.perf_counter()
    value = work()
    finish()
    return value, round(time.perf_counter() - began, 4)


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU here: nothing to check.")
        return
    ranks.join()
    device, began = choose_device(args.device), time.perf_counter()
    if args.rank_of:
        Bench(device, args.small, args.rank_of).database("of_ranks")
        ranks.end_together()
    result: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, args.small, Path(folder))
        for part in PARTS:
            late = time.perf_counter() - began > SECONDS
            result[part.__name__] = {"left out": "no time left"} if late else outcome(part, bench)
            print(part.__name__, json.dumps(result[part.__name__]), flush=True)
            args.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(any("fault" in values for values in result.values() if isinstance(values, dict)))


def outcome(part: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    try:
        values, seconds = timed(lambda: part(bench))
        return {**values, "all_seconds": seconds}
    except ImportError as fault:
        return {"left out": str(fault)}
    except Exception as fault:  # the other parts are still worth knowing
        return {"fault": str(fault), "where": traceback.format_exc(limit=-4)}


if __name__ == "__main__":
    main()
