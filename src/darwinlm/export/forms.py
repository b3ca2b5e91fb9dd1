"""Other forms of a finished checkpoint, written beside it: portable, GGUF, packed whole numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.export import compressed
from darwinlm.export.folder import RECORD, discard, has_record, record_written
from darwinlm.export.formats import MIXED, searched_for_vllm
from darwinlm.export.gguf.file import DTYPES, check_gguf, default_dtype, file_name, write_gguf
from darwinlm.export.gguf.importance import importance
from darwinlm.export.gguf.mixture import MIXTURES
from darwinlm.export.gguf.ollama import modelfile
from darwinlm.export.gguf.vocabulary import vocabulary
from darwinlm.export.portable import write_portable
from darwinlm.models.source import ModelSource
from darwinlm.models.stubs import stubbed
from darwinlm.runtime import ranks
from darwinlm.runtime.files import write_text

FORMATS = {"gguf": DTYPES, "compressed-tensors": compressed.DTYPES}
"""Format -> what it can be stored in."""


@dataclass(frozen=True)
class Form:
    """One form of a checkpoint, as it lies on the disk."""

    name: str
    path: Path
    parameters: int
    bytes: int
    """Of the weights: the safetensors files, or the whole GGUF file."""
    notes: list[str] = field(default_factory=list)
    """What its reader should know."""


@dataclass(frozen=True)
class Wanted:
    """Which other forms are asked for.

    Raises:
        RequestError: there is no such format or dtype.
    """

    portable: bool = False
    format: str = ""
    """One of `FORMATS`; empty for none."""
    dtype: str = ""
    """One of those that the format has; empty for what the checkpoint is stored in, of packed ones for what it was searched in,
    else 4 bits."""

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise RequestError(f"There is no format '{self.format}' to export to; there are: {', '.join(FORMATS)}.")
        if self.dtype and not self.format:
            raise RequestError(
                f"--dtype {self.dtype} is for other formats than the checkpoint's, which keeps the dense model's dtype: add "
                f"--format {' or '.join(FORMATS)}."
            )
        if self.dtype and self.dtype not in FORMATS[self.format]:
            advice = " For others, write f16 and run llama.cpp's llama-quantize on it." if self.format == "gguf" else ""
            raise RequestError(
                f"--dtype is '{self.dtype}'; {self.format} can be written as {', '.join(FORMATS[self.format])}.{advice}"
            )

    @property
    def needs_text(self) -> bool:
        """Whether a text says what rounding costs."""
        return self.dtype in MIXTURES or self.format == "compressed-tensors"

    def __bool__(self) -> bool:
        return self.portable or bool(self.format)


def check_forms(source: ModelSource, wanted: Wanted) -> None:
    """Check that a model can be had in the forms that are asked for, before anything is written.

    Raises:
        RequestError: it cannot; says why.
    """
    if wanted.format == "gguf":
        check_gguf(source, wanted.dtype)
    elif wanted.format:
        if ranks.world_size() > 1:
            raise RequestError("One process packs a checkpoint: run `darwinlm export` without torchrun.")
        compressed.check_compressed(source)


def checkpoint_in(checkpoint: Path) -> ModelSource:
    """A checkpoint that other forms can be made of.

    Raises:
        RequestError: none lies there.
    """
    if not checkpoint.is_dir():
        raise RequestError(f"There is no checkpoint folder '{checkpoint}'. Give one, such as runs/llama/model.")
    return ModelSource(str(checkpoint))


def write_forms(
    checkpoint: Path,
    wanted: Wanted,
    stub_heads: int = 1,
    text: Tensor | None = None,
    device: torch.device | None = None,
) -> list[Form]:
    """Write the forms that are asked for beside a canonical checkpoint.

    Args:
        checkpoint: its folder, such as `runs/llama/model`; gives `model-portable/`, `model-gguf/` and `model-w4a16/` beside it.
        wanted: which.
        stub_heads: query and KV heads of a stub attention in the portable form.
        text: (S, T) tokens that say what rounding costs, for K-quants and packed numbers.
        device: that passes them through the checkpoint; the CPU by default.

    Returns:
        The canonical one and those that were written.

    Raises:
        RequestError: no checkpoint lies there, or it cannot be had in such a form.
    """
    source = checkpoint_in(checkpoint)
    check_forms(source, wanted)
    forms = [_folder_form("canonical", source)]
    here = Path(os.path.abspath(checkpoint))  # beside a link, not beside what it leads to
    if wanted.portable and stubbed(source.shape).layers == source.shape.layers:
        forms[0].notes.append("No module is absent, so it is the portable form, too: no other was written.")
    elif wanted.portable:
        folder = _beside(here, "portable")
        write_portable(source, folder, stub_heads)
        forms.append(_folder_form("portable", ModelSource(str(folder))))
    device = device or torch.device("cpu")
    if wanted.format == "gguf":
        weights = importance(source, text, device) if wanted.needs_text and text is not None else {}
        forms.append(_gguf_form(source, _beside(here, "gguf"), wanted.dtype or default_dtype(source), weights))
    elif wanted.format:
        dtype = wanted.dtype or (MIXED if searched_for_vllm(source) else compressed.DTYPES[0])
        notes = compressed.write_compressed(source, folder := _beside(here, dtype), dtype, text, device)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        forms.append(Form(f"compressed-tensors {dtype}", folder, source.shape.parameters, size, notes))
    return forms


def _gguf_form(source: ModelSource, folder: Path, dtype: str, weights: Mapping[str, np.ndarray]) -> Form:
    """One file of the folder, and the `Modelfile` that names it."""
    path, recipe = folder / file_name(source, dtype), folder / "Modelfile"
    notes = write_gguf(source, path, dtype, weights)
    if dtype in MIXTURES and not weights:
        notes.append("All columns counted alike. With --data TEXT those that are fed most are rounded least.")
    write_text(recipe, modelfile(source, vocabulary(source), path.name))
    record_written(folder, path.name, recipe.name)
    return Form(f"gguf {dtype}", path, stubbed(source.shape).parameters, path.stat().st_size, notes)


def discard_forms(checkpoint: Path) -> None:
    """Remove the other forms of a checkpoint that goes, so that none is taken for a form of the next one."""
    for folder in (_beside(checkpoint, form) for form in ("portable", *compressed.DTYPES, MIXED)):
        if (folder / RECORD).is_file():
            discard(folder)
    if has_record(gguf := _beside(checkpoint, "gguf")):
        discard(gguf)


def _beside(checkpoint: Path, form: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-{form}")


def _folder_form(name: str, source: ModelSource) -> Form:
    sizes: Sequence[int] = [path.stat().st_size for path in set(source.files.values())]
    return Form(name, source.folder, source.shape.parameters, sum(sizes))
