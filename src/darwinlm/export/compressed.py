"""A checkpoint whose matrices are packed whole numbers (compressed-tensors, `pack-quantized`): vLLM and transformers load it,
and compute with what `formats.packing` reads back.

Embedding and head stay as they are, and so do matrices of no prunable module and those whose rows do not split into blocks.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import ROUNDED
from darwinlm.errors import RequestError
from darwinlm.export.folder import check_replaceable, record_of
from darwinlm.export.formats import MIXED, formats_of
from darwinlm.export.huggingface import require_canonical, write_checkpoint
from darwinlm.export.text import beginning
from darwinlm.export.words import read_card
from darwinlm.formats.packing import pack, whole_numbers
from darwinlm.formats.rounding import rounded
from darwinlm.formats.types import BLOCKS, PACKED, fitting, stored_bytes
from darwinlm.models.blocks import BlockStream
from darwinlm.models.sites import HEAD, KINDS, Kind, framed, layer_prefix
from darwinlm.models.source import ModelSource
from darwinlm.models.stubs import stubbed
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.runtime.files import require_room, sha256_of

DTYPES = ("w4a16", "w8a16")
"""What all matrices of the layers can be packed in."""
_BATCH = 8
"""Sequences in a forward pass."""
_NOTE = """
## Packed form
Matrices of its layers are whole numbers of {} bits and a scale for every {} columns of a row (compressed-tensors,
`pack-quantized`), {}. Embedding and head are not quantized.
"""


def check_compressed(source: ModelSource) -> None:
    """Check that a checkpoint can be packed, before anything is written.

    Raises:
        RequestError: it cannot; says why.
    """
    require_canonical(source)
    if source.family.experts:
        raise RequestError(
            f"'{source.name}' is a mixture of experts, whose matrices DarwinLM does not pack. Leave out --format "
            "compressed-tensors, and let llm-compressor quantize the checkpoint."
        )


def write_compressed(
    source: ModelSource, folder: Path, dtype: str, tokens: Tensor | None, device: torch.device
) -> list[str]:
    """Write the packed form of a checkpoint; the folder appears whole or not at all.

    Args:
        source: the canonical checkpoint.
        folder: where the packed one goes; one that lies there is replaced.
        dtype: one of `DTYPES`, or `MIXED`.
        tokens: (S, T) of a text that says in second order what rounding costs; without, every number goes to the nearest one.
        device: that passes them through the checkpoint.

    Returns:
        What the reader should know of it.

    Raises:
        RequestError: the folder holds something else, or the disk has no room.
    """
    check_compressed(source)
    check_replaceable(folder)
    modules: Mapping[str, str] = formats_of(source).get("modules", {})
    formats = dict(_formats(source, modules.get if dtype == MIXED else lambda _: dtype))
    packs = {name: format_ for name, format_ in formats.items() if format_ in PACKED}
    if not packs:
        raise RequestError(
            f"'{source.name}' has no matrix to pack: the search left all as they were, or no row is a multiple of 32 columns."
        )
    _require_room(source, folder, packs)
    notes, begun = [], folder.with_name(f".{folder.name}.rounding")
    if whole := len(formats) - len(packs):
        notes.append(f"{whole} matrices stay as they are: their rows are no multiple of 32.")
    layers = (source.layer(index) for index in range(len(source.shape.layers)))
    tensors = framed(lambda name: source.tensors([name])[name], source.shape.tied, layers)
    if dtype == MIXED:
        how = "as the search had them"
    elif tokens is None:
        how = "each to the nearest one"
        notes.append("Rounded to the nearest. With --data TEXT errors make up for each other.")
    else:
        tokens = beginning(tokens, source)
        how = f"rounded in second order on {tokens.numel():,} tokens"
        tensors = _rounded(source, dtype, tokens, device, begun).put_into(tensors)
    config = copy.deepcopy(source.config)
    config.quantization_config = _quantization(source, packs)
    record = {**(record_of(source.folder) or {}), "packed": dtype}
    written = _packed(tensors, packs, getattr(source.config, "dtype", None) or source.dtype)
    write_checkpoint(folder, source, config, written, card=read_card(source) + _note(packs, how), made_from=record)
    shutil.rmtree(begun, ignore_errors=True)
    return notes


def _note(packs: Mapping[str, str], how: str) -> str:
    found = {*packs.values()}
    bits, sizes = {PACKED[name] for name in found}, {BLOCKS[name][0] for name in found}
    words = (" or ".join(map(str, sorted(numbers, reverse=True))) for numbers in (bits, sizes))
    return _NOTE.format(*words, how)


def _formats(source: ModelSource, format_of: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    """(full name, format) of every matrix of modules that have one, or what stands in where its rows do not split."""
    for layer in range(len(source.shape.layers)):
        outlines = source.layer(layer, meta=True)
        for kind in KINDS:
            for name, tensor in _matrices(source, kind, outlines).items():
                if format_ := format_of(source.family.module(layer, kind)):
                    yield layer_prefix(layer) + name, fitting(format_, tensor.shape[1])


def _matrices(source: ModelSource, kind: Kind, layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return source.family.site(kind).matrices(layer)


def _rounded(source: ModelSource, format_: str, tokens: Tensor, device: torch.device, folder: Path) -> Refits:
    """All matrices rounded block by block, by what the rounded model feeds them; those that write to the residual stream make up
    for what it lacks. A killed one goes on."""
    if len(tokens) < 2:
        raise RequestError(
            f"Rounding needs 2 blocks of {tokens.shape[1]} tokens at least. Give more text, or lower --blocks.sequence_length."
        )

    def in_format(layer: int, kind: Kind) -> tuple[str, dict[str, Tensor]]:
        return format_, _matrices(source, kind, source.layer(layer))

    made_from = {
        "checkpoint": source.digest,
        "format": format_,
        "rounded": ROUNDED,
        "tokens": sha256_of(tokens.tolist()),
    }
    refits = Refits(folder, made_from)
    dense, rounded_ = BlockStream(source, device, torch.float32), _Rounded(source, device, format_)
    refit_blocks(refits, dense, rounded_, None, tokens, _BATCH, in_format=in_format)
    return refits


class _Rounded(BlockStream):
    """A checkpoint whose matrices are rounded to nearest in a format."""

    def __init__(self, source: ModelSource, device: torch.device, format_: str) -> None:
        super().__init__(source, device, torch.float32)
        self.format = format_

    def weights(self, index: int) -> dict[str, Tensor]:
        tensors = super().weights(index)
        matrices = {n: t for kind in KINDS for n, t in _matrices(self.source, kind, tensors).items()}
        return tensors | {name: rounded(tensor, self.format) for name, tensor in matrices.items()}


def _packed(
    tensors: Iterator[tuple[str, Tensor]], formats: Mapping[str, str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """What takes the places of matrices in a format; everything else in the checkpoint's dtype."""
    for name, tensor in tensors:
        if not (format_ := formats.get(name)):
            yield name, tensor.to(dtype)
            continue
        if not torch.isfinite(tensor).all():
            raise RequestError(
                f"'{name}' has weights that are no numbers, which cannot be packed. Mend the checkpoint."
            )
        numbers, scales = whole_numbers(tensor, format_)
        yield f"{name}_packed", pack(numbers, PACKED[format_])
        yield f"{name}_scale", scales
        yield f"{name}_shape", torch.tensor(tensor.shape)


def _quantization(source: ModelSource, formats: Mapping[str, str]) -> dict[str, Any]:
    """The configuration's entry: modules by their formats, and all others, also those that are gone, which engines may build."""
    groups: dict[str, list[str]] = {}
    for name, format_ in formats.items():
        groups.setdefault(format_, []).append(name.removesuffix(".weight"))
    full = stubbed(source.shape)
    every = (
        layer_prefix(layer) + name.removesuffix(".weight")
        for layer, widths in enumerate(full.layers)
        for name, size in source.shape.stock.outlines(layer, widths).items()
        if len(size) == 2
    )
    packs = {name for names in groups.values() for name in names}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{place}": {
                "targets": names if len(groups) > 1 else ["Linear"],
                "weights": {
                    "num_bits": PACKED[format_],
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": BLOCKS[format_][0],
                },
            }
            for place, (format_, names) in enumerate(groups.items())
        },
        "ignore": [HEAD.removesuffix(".weight"), *(name for name in every if name not in packs)],
    }


def _require_room(source: ModelSource, folder: Path, packs: Mapping[str, str]) -> None:
    own = source.dtype.itemsize
    sizes = source.shape.outlines().items()
    needed = sum(stored_bytes(size, packs[n]) if n in packs else own * math.prod(size) for n, size in sizes)
    require_room(folder.parent, needed, "This checkpoint")
