"""Other forms of a finished checkpoint, written beside it: portable, GGUF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from darwinlm.errors import RequestError
from darwinlm.export.folder import RECORD, discard
from darwinlm.export.gguf.file import DTYPES, check_gguf, default_dtype, write_gguf
from darwinlm.export.portable import write_portable
from darwinlm.models.source import ModelSource
from darwinlm.models.stubs import stubbed

FORMATS = ("gguf",)


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
    """One of `DTYPES`, for GGUF; empty for what the checkpoint is stored in."""

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise RequestError(f"There is no format '{self.format}' to export to; there are: {', '.join(FORMATS)}.")
        if self.dtype and self.dtype not in DTYPES:
            raise RequestError(
                f"--dtype is '{self.dtype}'; a GGUF file can be written as {', '.join(DTYPES)}. For others, such as Q4_K_M, "
                "write f16 and run llama.cpp's llama-quantize on it."
            )
        if self.dtype and not self.format:
            raise RequestError(
                f"--dtype {self.dtype} is for GGUF files: add --format gguf. The checkpoint keeps the dense model's dtype."
            )

    def __bool__(self) -> bool:
        return self.portable or bool(self.format)


def check_forms(source: ModelSource, wanted: Wanted) -> None:
    """Check that a model can be had in the forms that are asked for, before anything is written.

    Raises:
        RequestError: it cannot; says why.
    """
    if wanted.format == "gguf":
        check_gguf(source)


def write_forms(checkpoint: Path, wanted: Wanted, stub_heads: int = 1) -> list[Form]:
    """Write the forms that are asked for beside a canonical checkpoint.

    Args:
        checkpoint: its folder, such as `runs/llama/model`; gives `model-portable/` and `model-f16.gguf` beside it.
        wanted: which.
        stub_heads: query and KV heads of a stub attention in the portable form.

    Returns:
        The canonical one and those that were written.

    Raises:
        RequestError: no checkpoint lies there, or it cannot be had in such a form.
    """
    if not checkpoint.is_dir():
        raise RequestError(f"There is no checkpoint folder '{checkpoint}'. Give one, such as runs/llama/model.")
    source = ModelSource(str(checkpoint))
    check_forms(source, wanted)
    forms = [_folder_form("canonical", source)]
    here = Path(os.path.abspath(checkpoint))  # beside a link, not beside what it leads to
    if wanted.portable:
        folder = _portable(here)
        write_portable(source, folder, stub_heads)
        forms.append(_folder_form("portable", ModelSource(str(folder))))
    if wanted.format == "gguf":
        dtype = wanted.dtype or default_dtype(source)
        path = _gguf(here, dtype)
        notes = write_gguf(source, path, dtype)
        forms.append(Form(f"gguf {dtype}", path, stubbed(source.shape).parameters, path.stat().st_size, notes))
    return forms


def discard_forms(checkpoint: Path) -> None:
    """Remove the other forms of a checkpoint that goes, so that none is taken for a form of the next one."""
    if (_portable(checkpoint) / RECORD).is_file():
        discard(_portable(checkpoint))
    for dtype in DTYPES:
        _gguf(checkpoint, dtype).unlink(missing_ok=True)


def _portable(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-portable")


def _gguf(checkpoint: Path, dtype: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-{dtype}.gguf")


def _folder_form(name: str, source: ModelSource) -> Form:
    sizes: Sequence[int] = [path.stat().st_size for path in set(source.files.values())]
    return Form(name, source.folder, source.shape.parameters, sum(sizes))
