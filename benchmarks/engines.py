"""Are pruned models faster by as much as they are smaller? Dense and pruned in turn, in transformers and in llama.cpp.

    python benchmarks/engines.py [--engines transformers llama.cpp] [--repeats 9]
                                 [--cases demo/kv_group wide/kv_group wide/balanced wide/query_head]

`demo` is the embedded model (hidden size 256, 6 layers); `wide` a random Llama (hidden size 1024, 8 layers, 16 query
and 4 KV heads, vocabulary 8192, tied) that is made here. Each is pruned uniformly at levels 0, 3, 5 and 7 of 10 with a
database of few calibration tokens: that decides what is kept, not how fast it is. Prints a table for each engine and
writes benchmarks/results/engines.json; a case that is measured again in an engine replaces its former numbers there.

For llama.cpp all are GGUF files in float32. The pruned ones name the graph that takes layers of different widths
(`deci`), the dense one the graph that everybody runs (`llama`), so level 0 says what the choice of graph costs.

`share` is the speed-up by the ratio of the layers' parameters, dense to pruned; the model's ratio counts all of them.
Head, final norm and the overhead of each operation have no part in the layers' ratio and do not shrink with widths. So
each case also has a floor: the same number of layers, each at its narrowest. `proportion` is the part of the time above
the floor that went, by the part of the layers' parameters above the floor that went: 1 says that what was removed takes
its time with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.task import uniform_at
from darwinlm.config import BenchConfig, DatabaseConfig, RunConfig
from darwinlm.database.build import build_database
from darwinlm.database.levels import ladders
from darwinlm.database.store import Database
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Space
from darwinlm.measure.bench import STAGES, run_bench
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.run.demonstration import DEMO_MODEL
from darwinlm.runtime.progress import show_log

RESULTS = Path(__file__).parent / "results/engines.json"
ENGINES = ("transformers", "llama.cpp")
CASES = ("demo/kv_group", "wide/kv_group", "wide/balanced", "wide/query_head")
LEVELS = (0, 3, 5, 7)
"""Level 0 is the dense model in our modeling file: it must not be slower than stock code."""
STEPS = 10


def wide_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for words in DEMO_MODEL.glob("tokenizer*"):  # a GGUF file needs one; rows beyond its tokens are filled up
        shutil.copy(words, folder)
    return folder


def pruned_models(dense: Path, unit: str, scratch: Path) -> Iterator[Path]:
    """The checkpoints of the uniform genomes."""
    source, settings = ModelSource(str(dense)), DatabaseConfig(levels=STEPS, attention_unit=unit)
    rungs = ladders(source.shape, settings)
    database = Database(scratch / "database", {})
    tokens = torch.randint(source.shape.vocabulary, (4, 64), generator=torch.Generator().manual_seed(0))
    build_database(database, rungs, BlockStream(source, torch.device("cpu"), torch.float32), tokens, settings)
    assembler = Assembler(source, database)
    space = Space(tuple(rungs))
    genomes = {f"level {level}": uniform_at(space, level / STEPS, 0) for level in LEVELS}
    for name, genome in {**genomes, "floor": tuple(ladder.top - 1 for ladder in rungs)}.items():
        export_checkpoint(assembler, genome, scratch / name, {}, {})
        yield scratch / name


def gguf_file(checkpoint: Path, scratch: Path) -> Path:
    """A checkpoint in float32 for llama.cpp; in the graph for layers of different widths, as every GGUF file of ours."""
    path = scratch / f"{checkpoint.name}.gguf"
    write_gguf(ModelSource(str(checkpoint)), path, "f32")
    return path


def stock_file(ours: Path, path: Path) -> Path:
    """The same dense model in the graph of stock Llamas, with one number where ours has one for each layer."""
    import gguf

    reader = gguf.GGUFReader(ours)
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == gguf.Keys.General.ARCHITECTURE:
            continue
        name, value, kinds = key.replace("deci.", "llama."), field.contents(), field.types
        if name.startswith("llama.") and isinstance(value, list):
            (value,), kinds = set(value), [gguf.GGUFValueType.UINT32]
        writer.add_key_value(name, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def models_for(engine: str, dense: Path, pruned: list[Path], scratch: Path) -> list[str]:
    """What the engine loads: the dense model first."""
    if engine == "transformers":
        return [str(dense), *map(str, pruned)]
    files = [gguf_file(checkpoint, scratch) for checkpoint in pruned]
    return [str(stock_file(gguf_file(dense, scratch), scratch / "stock.gguf")), *map(str, files)]


def measure(case: str, engines: list[str], repeats: int, threads: int, keep: Callable[[str, Any], None]) -> None:
    """Prune once, then measure in one engine after the other."""
    name, unit = case.split("/")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dense = DEMO_MODEL if name == "demo" else wide_model(scratch / "wide")
        pruned = list(pruned_models(dense, unit, scratch))
        for engine in engines:
            batches = [1, 4] if engine == "transformers" else [1]
            bench = BenchConfig(batch_sizes=batches, context_lengths=[256], repeats=repeats, threads=threads)
            config = RunConfig(device="cpu", dtype="float32", bench=bench)
            values = run_bench(models_for(engine, dense, pruned, scratch), config).as_dict()
            for model, known in zip(values["models"], ("dense", *(path.name for path in pruned))):
                model["name"] = known
            keep(engine, values)


def proportion(values: dict[str, Any], model: int, place: int, stage: str) -> float:
    """The part of the time above the floor that went, by the part of the layers' parameters above it that went."""

    def part(of: list[float]) -> float:
        return (of[0] - of[model]) / (of[0] - of[-1])

    seconds = [rows[place][f"{stage}_seconds"]["median"] for rows in values["measurements"]]
    return part(seconds) / part([facts["layer_parameters"] for facts in values["models"]])


def report(found: dict[str, Any]) -> None:
    columns = ("speed-up", "share", "proportion")
    head = [
        "model, unit",
        "level",
        "read",
        "layers' ratio",
        "model's ratio",
        *(f"{s}: {c}" for s in STAGES for c in columns),
        "memory",
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for case, values in found.items():
        for index, model in list(enumerate(values["models"]))[1:-1]:
            for place, row in enumerate(values["measurements"][index]):
                level = int(model["name"][-1])
                cells = [case.replace("/", ", "), str(level)]
                cells += [f"{row['work']['sequences']} x {row['work']['tokens']}", f"{model['layer_ratio']:.2f}"]
                cells.append(f"{values['models'][0]['parameters'] / model['parameters']:.2f}")
                for stage in STAGES:
                    speedup = row[f"{stage}_speedup"]
                    cells.append(f"{speedup['median']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})")
                    cells.append(f"{speedup['median'] / model['layer_ratio']:.2f}")
                    cells.append(f"{proportion(values, index, place, stage):.2f}" if level else "-")
                memory = row["memory_bytes"] / values["measurements"][0][place]["memory_bytes"]
                print(f"| {' | '.join([*cells, f'{memory:.2f}'])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what was measured before")
    args = parser.parse_args()
    show_log()
    torch.set_num_threads(args.threads)
    known = json.loads(args.results.read_text()) if args.results.exists() else {}
    found: dict[str, dict[str, Any]] = {engine: known.get(engine, {}) for engine in ENGINES}
    for case in () if args.report else args.cases:

        def keep(engine: str, values: Any, case: str = case) -> None:
            found[engine][case] = values
            ordered = {one: {name: of[name] for name in CASES if name in of} for one, of in found.items()}
            args.results.write_text(json.dumps(ordered, indent=1) + "\n")

        measure(case, args.engines, args.repeats, args.threads, keep)
    for engine in args.engines:
        if measured := {case: found[engine][case] for case in args.cases if case in found[engine]}:
            print(f"\n{engine}\n")
            report(measured)


if __name__ == "__main__":
    main()
