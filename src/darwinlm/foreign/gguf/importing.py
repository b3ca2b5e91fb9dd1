"""A GGUF file -> a checkpoint of transformers, streamed: one tensor at a time is in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import GenerationConfig

from darwinlm.errors import DamagedFileError, DarwinLMError, RequestError, first_line
from darwinlm.export.folder import check_replaceable, partial_of, put_in_place
from darwinlm.export.huggingface import write_files
from darwinlm.foreign.gguf.model import Held, held_model, tensors, without_stubs
from darwinlm.foreign.gguf.reading import WHOLE, GgufFile
from darwinlm.foreign.gguf.words import generation_config, tokenizer_of
from darwinlm.models.heterogeneous import heterogeneous_config
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import require_room, write_text
from darwinlm.runtime.output import harmless
from darwinlm.runtime.progress import log, progress

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_CARD = """---
{front}---
# {name}

Read from a GGUF file of llama.cpp ({types}) by DarwinLM: {numbers}.
"""


@dataclass(frozen=True)
class ImportedGguf:
    """What a GGUF file held, and where it lies now."""

    folder: Path
    model_type: str
    shape: ModelShape
    types: dict[str, int]
    """{type of matrices in the file: how many}."""
    dtype: torch.dtype
    """Of the checkpoint's matrices."""


def import_gguf(path: Path, folder: Path, dtype: str = "") -> ImportedGguf:
    """Write the model of a GGUF file as a checkpoint; the folder appears whole or not at all.

    Args:
        path: the file.
        folder: of the checkpoint; one that DarwinLM has made is replaced.
        dtype: one of `DTYPES`; by default the one that loses nothing: the file's, float32 of a quantized file.

    Raises:
        RequestError: the file cannot be read, or is not read exactly; raised before anything is written.
    """
    if dtype and dtype not in DTYPES:
        raise RequestError(f"--dtype is '{dtype}'; a checkpoint is stored in one of {', '.join(DTYPES)}.")
    check_replaceable(folder)
    file = GgufFile(path)
    held, tokenizer, generation = _understood(file)
    stored = DTYPES[dtype] if dtype else WHOLE.get(next(iter(file.types)), torch.float32)
    require_room(folder.parent, held.shape.parameters * stored.itemsize, "The checkpoint")
    numbers = _tell(file, stored)
    partial = partial_of(folder)
    try:
        with progress("Tensors", len(held.shape.outlines())) as advance:
            streamed = _stored(file, held.shape, stored, advance, bool(dtype))
            write_files(partial, held.family, _config(held, stored), stored, streamed)
        tokenizer.save_pretrained(partial)
        generation.save_pretrained(partial)
        write_text(partial / "README.md", _card(file, numbers))
        _ = ModelSource(str(partial)).tokenizer  # it is what the other commands can read
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    put_in_place(partial, folder, {"imported": path.name, "types": file.types})
    return ImportedGguf(folder, held.family.model_type, held.shape, file.types, stored)


def _understood(file: GgufFile) -> tuple[Held, Any, GenerationConfig]:
    """Model, tokenizer and generation settings of a file, before anything is written."""
    try:
        return without_stubs(file, held_model(file)), tokenizer_of(file), generation_config(file)
    except DarwinLMError:
        raise
    except Exception as fault:  # of tokenizers and configurations, whose own errors have no class in common
        raise DamagedFileError(
            f"The header of '{file.path}' makes no model and tokenizer ({first_line(fault):.200}). Download or copy it again."
        ) from fault


def _config(held: Held, dtype: torch.dtype) -> Any:
    """The configuration that belongs to the weights: of stock transformers where all layers are whole."""
    if set(held.shape.layers) != {held.shape.original}:
        return heterogeneous_config(held.family, held.config, held.shape.layers)
    held.config.architectures, held.config.dtype = [f"{held.family.prefix}ForCausalLM"], dtype
    return held.config


def _stored(
    file: GgufFile, shape: ModelShape, dtype: torch.dtype, advance: Any, asked: bool
) -> Iterator[tuple[str, Tensor]]:
    """Tensors as they are stored: where no dtype was asked for, vectors that it would round stay float32."""
    for name, tensor in tensors(file, shape):
        found = tensor.to(dtype)
        if not torch.isfinite(found).all():
            raise RequestError(
                f"'{file.path}' has numbers beyond the range of f16 in '{name}'. Choose --dtype bf16 or f32."
            )
        yield name, found if asked or torch.equal(found.float(), tensor) else tensor
        advance(name)


def _tell(file: GgufFile, dtype: torch.dtype) -> str:
    """Say what the numbers are worth; returns it for the card."""
    counted = ", ".join(f"{count} as {name}" for name, count in file.types.items())
    if rounded := [name for name in file.types if name not in WHOLE]:
        log.warning(
            "'%s' is quantized (%s of its matrices): what was rounded stays rounded, so this is not the original model. Where "
            "its own checkpoint can be had, take that.",
            file.path,
            counted,
        )
        return f"the matrices were quantized ({', '.join(rounded)}), so they are rounded"
    return f"the matrices are as they were there, stored as {str(dtype).removeprefix('torch.')}"


def _card(file: GgufFile, numbers: str) -> str:
    name = " ".join(harmless(str(file.values.get("general.name") or file.path.stem)).split())
    front = {"library_name": "transformers", "tags": ["darwinlm"], "pipeline_tag": "text-generation"}
    if licence := file.values.get("general.license"):
        front["license"] = str(licence)
    if base := file.values.get("general.base_model.0.repo_url"):
        front["base_model"] = str(base).removeprefix("https://huggingface.co/")
    types = ", ".join(f"{count} matrices {kind}" for kind, count in file.types.items())
    return _CARD.format(front=yaml.safe_dump(front, sort_keys=True), name=name, types=types, numbers=numbers)
