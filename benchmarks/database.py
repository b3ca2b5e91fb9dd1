"""The level database: its size on disk, its accuracy against a float64 build, and its memory over the layers.

    python benchmarks/database.py

1. Size: the database of the demo model against dense copies of the output matrices of all levels, the first and the
   last included, as other tools keep them.
2. Accuracy: the demo model's activations on 65,536 tokens of Python source; every level of every module is made in
   float32 as the build makes it, and again in float64 from a float64 Hessian of the same activations. Compared is
   tr(dW H dW^T) of both, in float64 with the float64 Hessian.
3. Memory: peak resident memory of building random models that differ only in their number of layers, each in a process
   of its own.

Prints tables and writes benchmarks/results/database.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import darwinlm
from darwinlm.config import BlocksConfig, DatabaseConfig
from darwinlm.data.blocks import make_splits
from darwinlm.database.build import build_database
from darwinlm.database.damping import USUAL
from darwinlm.database.hessians import block_hessians, damp, drop_dead_columns
from darwinlm.database.levels import ladders
from darwinlm.database.obs import prune_groups
from darwinlm.database.store import Database
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource

HERE = Path(__file__).parent
DEMO = Path(darwinlm.__file__).parent / "demo_model"
CPU = torch.device("cpu")
BLOCKS = BlocksConfig(sequence_length=256, hessian=256, train=1, select=1, held_out=1, pool_tokens=200_000)


def open_demo() -> tuple[BlockStream, Tensor, DatabaseConfig]:
    source = ModelSource(str(DEMO))
    tokens = make_splits("stdlib", BLOCKS, source.tokenizer, 0).hessian
    return BlockStream(source, CPU, torch.float32), tokens, DatabaseConfig()


def size() -> dict:
    stream, tokens, config = open_demo()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder), {})
        build_database(database, ladders(stream.source.shape, config), stream, tokens, config)
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
    hidden, value_bytes = stream.source.shape.hidden, stream.source.dtype.itemsize
    dense = sum(ladder.columns * hidden * (ladder.top + 1) for ladder in database.ladders()) * value_bytes
    return {"bytes": written, "dense_copies_bytes": dense, "ratio": written / dense}


def accuracy() -> dict:
    stream, tokens, config = open_demo()
    hidden = stream.embed(tokens)
    gaps, choices, of = [], 0, 0
    for layer, block in enumerate(stream.blocks()):
        wanted = [ladder for ladder in ladders(stream.source.shape, config) if ladder.layer == layer]
        exact, hooks = {}, []
        for ladder in wanted:
            matrix = block.output_matrix(ladder.kind)
            exact[ladder.kind] = torch.zeros(ladder.columns, ladder.columns, dtype=torch.float64)
            hooks.append(matrix.register_forward_pre_hook(summing(exact[ladder.kind], tokens.numel())))
        hessians = block_hessians(stream, block, hidden, [l.kind for l in wanted], tokens.numel(), 8)
        for hook in hooks:
            hook.remove()
        for ladder in wanted:
            weight, single, double = (
                block.output_matrix(ladder.kind).weight.detach().float(),
                hessians[ladder.kind][0],
                exact[ladder.kind],
            )
            weight, _ = drop_dead_columns(weight, single)
            damp(single, USUAL, ladder.name)
            damp(double, USUAL, ladder.name)
            shape = {"group_size": ladder.group_size, "counts": ladder.removed, "rounds": ladder.rounds}
            ours = list(prune_groups(weight, single, **shape))
            truth = list(prune_groups(weight.double(), double, **shape))
            choices += sum(a == b for a, b in zip(ours[-1].removed, truth[-1].removed))
            of += len(truth[-1].removed)
            for level, true_level in list(zip(ours, truth))[1:]:
                gap = error(weight, double, level) / error(weight, double, true_level) - 1
                gaps.append(
                    (gap, f"{ladder.name}, {len(level.removed)} groups removed", level.error / true_level.error - 1)
                )
    worst = max(gaps, key=lambda gap: abs(gap[0]))
    return {
        "levels": len(gaps),
        "largest_relative_gap": worst[0],
        "where": worst[1],
        "largest_gap_of_the_reported_error": max((gap[2] for gap in gaps), key=abs),
        "same_choices": f"{choices} of {of}",
    }


def summing(hessian: Tensor, tokens: int):
    def hook(module, arguments) -> None:
        x = arguments[0].flatten(0, -2).double()
        hessian.addmm_(x.T, x, alpha=1 / tokens)

    return hook


def error(weight: Tensor, hessian: Tensor, level) -> float:
    refitted = torch.zeros_like(weight, dtype=torch.float64)
    refitted[:, level.kept] = level.weight.double()
    difference = weight.double() - refitted
    return (difference @ hessian * difference).sum().item()


def peak_of_layers(layers: int) -> int:
    """Build a random model of this many layers; called in a process of its own. Returns its peak resident bytes."""
    import resource

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--make", folder, str(layers)], check=True)
        source = ModelSource(folder)
        stream, config = BlockStream(source, CPU, torch.float32), DatabaseConfig()
        tokens = torch.randint(256, (32, 128), generator=torch.Generator().manual_seed(0))
        build_database(Database(Path(folder) / "database", {}), ladders(source.shape, config), stream, tokens, config)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_random(folder: str, layers: int) -> None:
    """A random Llama of this many layers, hidden 256, intermediate 1024: 4.2 MB a layer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=512,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make_random(args.make[0], int(args.make[1]))
    if args.peak:
        return print(peak_of_layers(args.peak))
    results = {"size": size(), "accuracy": accuracy(), "peak_bytes": {}}
    print(f"size: {results['size']['ratio']:.3f} of dense copies ({results['size']['bytes']:,} bytes)")
    print(f"accuracy: {results['accuracy']}")
    for layers in args.layers:
        output = subprocess.run([sys.executable, __file__, "--peak", str(layers)], check=True, capture_output=True)
        results["peak_bytes"][layers] = int(output.stdout.split()[-1])
        print(f"peak memory, {layers} layers: {results['peak_bytes'][layers] / 1e6:.0f} MB", flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/database.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
