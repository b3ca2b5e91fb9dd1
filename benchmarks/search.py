"""One generation of the search against a faithful full-size one: same candidates, tokens and settings, in one run.

    python benchmarks/search.py [--shared ../shared] [--repeats 3] [--level 4]

The full-size generation does what the method's first implementation does: for every candidate it copies the whole dense
model, loads zero-masked output matrices of dense shape from one file a module and level, trains all weights at dense
shapes with AdamW one sequence at a time, and scores it with the dense model's logits, which are kept whole; candidates
come one after another. (That implementation does not mask the weights in training, either.)

Beside the search as it is stand the same on two ranks of one thread each, and without search.continue_training, where
survivors begin anew at every selection step, in one process and on two ranks: all four give the same scores.

Each variant runs in processes of its own, alternately. Prints medians, the memory that the dense model, the teacher and
the generation take beyond the imports (of all ranks), and where the time goes; writes benchmarks/results/search.json.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

from darwinlm.assemble import Assembler
from darwinlm.config import settled
from darwinlm.run.request import Run, opened
from darwinlm.run.stages import database_stage, make_teacher
from darwinlm.runtime import ranks
from darwinlm.runtime.seeds import python_random
from darwinlm.search import selection
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Pools
from darwinlm.search.mutation import offspring
from darwinlm.search.samples import draw, draw_parts
from darwinlm.target.budget import level_budget
from subjects import pep_llama

HERE = Path(__file__).parent
Fitness = Callable[[Step], Tensor]
SECONDS: dict[str, float] = defaultdict(float)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
VARIANTS = {
    "full-size": [sys.executable],
    "ours": [sys.executable],
    "two ranks": TORCHRUN,
    "anew": [sys.executable],
    "anew, two ranks": TORCHRUN,
}
"""Name -> what starts it."""


@contextmanager
def timed(part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    SECONDS[part] += time.perf_counter() - began


class FullSize:
    """The faithful baseline."""

    def __init__(self, run: Run, masked: Path) -> None:
        self.run, self.masked = run, masked
        self.dense = AutoModelForCausalLM.from_pretrained(run.config.model, dtype=torch.float32)
        with torch.no_grad():
            self.logits = [self.dense(block[None]).logits for block in run.splits.select]

    def __call__(self, step: Step) -> Tensor:
        kls = [self._score(genome, step.stage, step.generation, step.index) for genome in step.candidates]
        return torch.tensor(kls)[:, None]

    def _score(self, genome, stage, generation: int, index: int) -> float:
        run, seed = self.run, self.run.config.seed
        with timed("assemble"):
            model = copy.deepcopy(self.dense)
            for ladder, level in zip(run.ladders, genome):
                weight = torch.load(self.masked / f"{ladder.name}.{level}.pth", weights_only=True)
                model.get_parameter(run.source.family.output(ladder.layer, ladder.kind)).data.copy_(weight)
        optimizer = torch.optim.AdamW(model.parameters(), lr=run.config.search.learning_rate, weight_decay=0.0)
        parts = draw_parts(run.splits.train, run.config.search.train_tokens, seed, "train", generation)
        for block, length in itertools.chain(*parts[: index + 1]):
            tokens = run.splits.train[block : block + 1, :length]
            with timed("train"):
                model(tokens, labels=tokens).loss.backward()
            with timed("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
        total, count, sequence = 0.0, 0, run.config.search.sequence_tokens
        with timed("score"), torch.no_grad():
            for block, length in draw(
                run.splits.select, stage.select_tokens, seed, "select", generation, index, sequence
            ):
                ours = log_softmax(model(run.splits.select[block : block + 1, :length]).logits, -1)
                truth = log_softmax(self.logits[block][:, :length], -1)
                total += kl_div(ours, truth, reduction="sum", log_target=True).item()
                count += length
        return total / count


def ours(run: Run) -> Fitness:
    """The search's own fitness, with its parts timed."""
    assembler = Assembler(run.source, run.finished_database(), cache_bytes=1 << 30)
    teacher = make_teacher(run)
    for owner, name, part in (
        (Assembler, "model", "assemble"),
        (selection.Trial, "train", "train"),
        (torch.optim.AdamW, "step", "optimizer"),
        (selection, "kls_to_teacher", "score"),
    ):
        setattr(owner, name, timing(getattr(owner, name), part))
    return selection.TrainedFitness(
        assembler, Pools(run.splits.train, teacher, run.stream), run.config.search, run.config.seed, torch.float32
    )


def timing(function: Callable, part: str) -> Callable:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with timed(part):
            return function(*args, **kwargs)

    return wrapped


def generation(run: Run, fitness: Fitness) -> list[float]:
    """The first generation from the uniform start; the scores of its last step."""
    config, share = run.config.search, (run.config.target.level or 0.0) / run.config.database.levels
    budget = level_budget(run.space, share)
    parent = run.uniform_genome
    rng = python_random(0, "mutation", 0)
    candidates = offspring(parent, config.offspring, budget, config.switches, rng)
    scores: list[float] = []
    for index, stage in enumerate(config.stages):
        last = index == len(config.stages) - 1
        candidates = [*candidates, parent] if last else candidates
        scores = fitness(Step(candidates, parent, stage, 0, index, last)).mean(1).tolist()
        best = sorted(range(len(candidates)), key=lambda i: (scores[i], i))[: stage.survivors]
        candidates = [candidates[i] for i in best]
    return sorted(scores)


def memory(figure: str) -> int:
    """Bytes of a figure of this process, such as VmRSS, or VmHWM for its peak."""
    return next(int(row.split()[1]) for row in Path("/proc/self/status").open() if row.startswith(figure)) * 1024


def child(config: Any, variant: str, masked: Path) -> dict:
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far may be that of the parent process
    with opened(config) as run:
        fitness = FullSize(run, masked) if variant == "full-size" else ours(run)
        ranks.barrier()
        began = time.perf_counter()
        scores = generation(run, fitness)
        seconds = time.perf_counter() - began
        growth = sum(ranks.all_gather(memory("VmHWM") - before))
    if variant != "full-size":
        SECONDS["train"] -= SECONDS["optimizer"]
    ranks.leave()
    return {"seconds": seconds, "growth": growth, "scores": scores, "parts": dict(SECONDS)}


def write_masked(run: Run, folder: Path) -> None:
    """Every level of every module as a dense, zero-masked matrix in a file of its own."""
    database = database_stage(run)
    for ladder in run.ladders:
        name = run.source.family.output(ladder.layer, ladder.kind)
        dense = run.source.tensors([name])[name]
        for level in range(ladder.top + 1):
            masked = torch.zeros_like(dense) if level else dense
            if 0 < level < ladder.top:
                masked[:, database.kept(ladder.name, level)] = database.weight(ladder.name, level)
            torch.save(masked, folder / f"{ladder.name}.{level}.pth")


def settings(shared: Path, level: int, output: str, variant: str) -> Any:
    values = pep_llama.reference_settings(shared)
    values["search"]["continue_training"] = not variant.startswith("anew")
    return settled({**values, "output": output, "target": {"level": level}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=pep_llama.SHARED)
    parser.add_argument("--level", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not pep_llama.is_there(args.shared):
        return
    if args.child:
        variant, scratch = args.child
        row = child(settings(args.shared, args.level, f"{scratch}/run", variant), variant, Path(scratch))
        return print(json.dumps(row)) if os.environ.get("RANK", "0") == "0" else None
    found: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as scratch:
        with opened(settings(args.shared, args.level, f"{scratch}/run", "ours")) as run:
            write_masked(run, Path(scratch))
        for _ in range(args.repeats):
            for variant, rows in found.items():
                command = [*VARIANTS[variant], __file__, "--level", str(args.level), "--shared", str(args.shared)]
                output = subprocess.run([*command, "--child", variant, scratch], check=True, capture_output=True)
                rows.append(json.loads(output.stdout.splitlines()[-1]))
    report(found)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/search.json").write_text(json.dumps({"level": args.level, **found}, indent=2) + "\n")


def report(found: dict[str, list[dict]]) -> None:
    parts = ("assemble", "train", "optimizer", "score")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32; medians")
    print("| generation | seconds | memory | " + " | ".join(parts) + " | best KL | speed-up | memory, ratio |")
    print("|---" * (len(parts) + 6) + "|")
    full = found["full-size"]

    def median(rows: list[dict], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    for variant, rows in found.items():
        shares = " | ".join(f"{statistics.median(row['parts'][part] for row in rows):.1f} s" for part in parts)
        ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(full, rows))
        speed = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        memory = f"{median(rows, 'growth') / median(full, 'growth'):.2f}"
        print(
            f"| {variant} | {median(rows, 'seconds'):.1f} | {median(rows, 'growth') / 1e6:.0f} MB | {shares} "
            f"| {rows[0]['scores'][0]:.4f} | {speed} | {memory} |"
        )


if __name__ == "__main__":
    main()
