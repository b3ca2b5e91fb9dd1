"""Peak memory of the trial training against what `darwinlm plan` predicts, for models of any size, without a GPU.

    python benchmarks/memory.py [--shapes recipes/shapes/llama-2-7b recipes/shapes/llama-3.1-8b]

One training step of the uniform candidate at level 5 of 10 runs on tensors without values (torch's fake tensors): every
allocation is made and freed as in a real step, but holds nothing. Counted are all live tensors: weights, gradients,
moments, activations, temporaries; not what the allocator loses by fragmentation. Prints a table and writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from darwinlm.comparison.methods.task import uniform_at
from darwinlm.config import RunConfig, preset_values, resolve
from darwinlm.cost import nominal_widths, trial_memory
from darwinlm.database.levels import ladders
from darwinlm.genome import Space
from darwinlm.models.heterogeneous import heterogeneous_config, modeling
from darwinlm.models.source import ModelSource
from darwinlm.search.trial import Trial

HERE = Path(__file__).parent
SHAPES = [HERE.parent / "recipes/shapes" / name for name in ("llama-2-7b", "llama-3.1-8b", "qwen2.5-14b")]
LEVEL = 5


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors hold nothing, so a loss cannot be looked at: it counts as finite."""
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch("torch.isfinite", return_value=True):
        yield


def measured(source: ModelSource, config: RunConfig, weights: torch.dtype) -> int:
    """Bytes at the peak of the second training step."""
    rungs = ladders(source.shape, config.database)
    genome = uniform_at(Space(tuple(rungs)), LEVEL / config.database.levels, 0)
    widths = nominal_widths(source.shape, rungs, genome)
    model_config = heterogeneous_config(source.family, source.config, widths)
    with without_values():
        model_config.dtype = weights
        model = modeling(source.family).DarwinLMForCausalLM._from_config(model_config)
        if config.search.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        trial = Trial(model, 1e-5, config.search.batch_sequences, weights)
        pool = torch.zeros(1, config.blocks.sequence_length, dtype=torch.int64)
        trial.train(pool, [(0, pool.shape[1])])  # now the optimizer holds what it keeps
        tracker = MemTracker()
        tracker.track_external(model, *trial.tensors())
        with tracker:
            trial.train(pool, [(0, pool.shape[1])])
        peaks = tracker.get_tracker_snapshot("peak")
    return sum(kinds["Total"] for kinds in peaks.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=Path, nargs="+", default=SHAPES)
    args = parser.parse_args()
    rows = []
    print("| model | weights | checkpointing | parameters | plan | counted | plan / counted |")
    print("|---|---|---|---|---|---|---|")
    for folder in args.shapes:
        source = ModelSource(str(folder), weights=False)
        for weights in (torch.bfloat16, torch.float32):
            for checkpointing in (False, True):
                config = resolve(preset_values("paper"))
                search = replace(config.search, gradient_checkpointing=checkpointing)
                config = replace(config, search=search, database=replace(config.database, rounding="equal"))
                rows.append(compare(source, folder.name, config, weights, checkpointing))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/memory.json").write_text(json.dumps(rows, indent=2) + "\n")


def compare(source: ModelSource, name: str, config: RunConfig, weights: torch.dtype, checkpointing: bool) -> dict:
    rungs = ladders(source.shape, config.database)
    genome = uniform_at(Space(tuple(rungs)), LEVEL / config.database.levels, 0)
    pruned = source.shape.with_layers(nominal_widths(source.shape, rungs, genome))
    plan, counted = (
        trial_memory(pruned, config.search, config.blocks.sequence_length, weights),
        measured(source, config, weights),
    )
    print(
        f"| {name} | {str(weights).removeprefix('torch.')} | {'yes' if checkpointing else 'no'} "
        f"| {pruned.parameters / 1e9:.2f} B | {plan / 1e9:.1f} GB | {counted / 1e9:.1f} GB | {plan / counted:.2f} |",
        flush=True,
    )
    values = {"weights": str(weights), "checkpointing": checkpointing, "parameters": pruned.parameters}
    return {"model": name, **values, "plan_bytes": plan, "counted_bytes": counted}


if __name__ == "__main__":
    main()
