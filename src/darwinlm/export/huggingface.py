"""The canonical checkpoint: safetensors, a standard config with `per_layer_config`, and one modeling file.

It loads with transformers alone (`trust_remote_code=True`) and gives the logits of the zero-masked dense model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from darwinlm.assemble import Assembler
from darwinlm.export.card import model_card
from darwinlm.genome import Genome
from darwinlm.models.heterogeneous import modeling_source
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import flush, write_json, write_tensors, write_text

SHARD_BYTES = 4 << 30
"""Largest weight file."""
_CODE = "modeling_darwinlm"
_AUTO_MAP = {
    "AutoConfig": f"{_CODE}.DarwinLMConfig",
    "AutoModel": f"{_CODE}.DarwinLMModel",
    "AutoModelForCausalLM": f"{_CODE}.DarwinLMForCausalLM",
}
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.tiktoken",
)


def export_checkpoint(
    assembler: Assembler, genome: Genome, folder: Path, facts: dict[str, Any], made_from: dict[str, Any]
) -> None:
    """Write a genome's model as a checkpoint; the folder appears whole or not at all.

    Args:
        assembler: dense weights and database.
        genome: the levels.
        folder: where the checkpoint goes; one that lies there is replaced.
        facts: what the model card says of how it was made.
        made_from: kept beside it as `darwinlm.json`, so that it is known again.
    """
    source = assembler.source
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(partial, assembler.tensors(genome))
    write_json(partial / "config.json", _config(assembler, genome))
    write_text(partial / f"{_CODE}.py", modeling_source(source.family))
    _copy_words(source, partial)
    write_text(partial / "README.md", model_card(source, assembler.shape(genome), assembler.space.named(genome), facts))
    write_json(partial / "darwinlm.json", made_from)
    for path in partial.iterdir():
        flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    flush(folder.parent)


def _config(assembler: Assembler, genome: Genome) -> dict[str, Any]:
    values = json.loads(assembler.config(genome).to_json_string())
    dtype = str(assembler.source.dtype).removeprefix("torch.")
    return {"architectures": ["DarwinLMForCausalLM"], "auto_map": _AUTO_MAP, **values, "dtype": dtype}


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Stream tensors into one file, or into numbered ones with an index."""
    names: list[list[str]] = []
    total = 0
    for number, shard in enumerate(_shards(tensors)):
        write_tensors(folder / f"part-{number}.safetensors", shard, {"format": "pt"})
        names.append(list(shard))
        total += sum(map(_bytes, shard.values()))
    if len(names) == 1:
        os.replace(folder / "part-0.safetensors", folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        os.replace(folder / f"part-{number}.safetensors", folder / file)
        index |= dict.fromkeys(held, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Groups of at most SHARD_BYTES; a larger tensor gets one of its own."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(map(_bytes, shard.values())) + _bytes(tensor) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy_words(source: ModelSource, folder: Path) -> None:
    """Tokenizer and licence as they are; the generation settings, made from the configuration where there are none."""
    for pattern in (*_TOKENIZER_FILES, "LICENSE*", "NOTICE*"):
        for path in sorted(source.folder.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    generation = source.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    else:
        GenerationConfig.from_model_config(source.config).save_pretrained(folder)
