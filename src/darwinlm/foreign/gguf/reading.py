"""A GGUF file, opened: its header as values, its tensors one by one in float32."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import DamagedFileError, RequestError, first_line

MAGIC = b"GGUF"
WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of tensors that are stored as they are; all others are quantized."""


def is_gguf(path: Path) -> bool:
    """Whether a file is named or begins like a GGUF file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"


class GgufFile:
    """The header of a GGUF file, and its tensors where they are asked for.

    Args:
        path: the file.

    Raises:
        RequestError: the package gguf is not installed, or the file is one part of several.
        DamagedFileError: it is no GGUF file, or cut short.
    """

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise RequestError("Reading GGUF files needs the package gguf: pip install 'darwinlm[gguf]'.")
        import gguf

        self.path = path
        self.shapes: dict[str, tuple[int, ...]]
        """{tensor name: shape, rows first}."""
        try:
            reader = gguf.GGUFReader(path)
            self.values: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.shapes = {name: tuple(int(size) for size in reversed(t.shape)) for name, t in self._tensors.items()}
        except (OSError, ValueError, LookupError, TypeError, OverflowError, UnicodeDecodeError) as fault:
            raise DamagedFileError(
                f"'{path}' is no whole GGUF file ({first_line(fault):.200}). Download or copy it again."
            ) from fault
        if (parts := self.values.get("split.count", 1)) > 1:
            raise RequestError(
                f"'{path}' is one of {parts} parts of a model. Join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf."
            )
        self.architecture = str(self.values.get("general.architecture", ""))

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the model's own, such as `block_count`."""
        return self.values.get(f"{self.architecture}.{name}", default)

    @property
    def types(self) -> dict[str, int]:
        """{type of matrices: how many}, the one of most numbers first."""
        matrices = [t for t in self._tensors.values() if len(t.shape) > 1]
        counts = Counter(t.tensor_type.name for t in matrices)
        numbers: Counter[str] = Counter()
        for tensor in matrices:
            numbers[tensor.tensor_type.name] += int(tensor.n_elements)
        return {name: counts[name] for name, _ in numbers.most_common()}

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32, in memory of its own.

        Raises:
            RequestError: the package gguf cannot read its type.
            DamagedFileError: its numbers are not finite.
        """
        import gguf

        stored = self._tensors[name]
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as fault:
            raise RequestError(
                f"'{self.path}' holds tensors of type {stored.tensor_type.name}, which the installed package gguf cannot read. "
                "Update it (pip install -U gguf), or take the file in another type."
            ) from fault
        found = torch.tensor(values, dtype=torch.float32).view(self.shapes[name])
        if not torch.isfinite(found).all():
            raise DamagedFileError(f"'{self.path}' holds NaN or Inf in '{name}'. Download or copy it again.")
        return found
