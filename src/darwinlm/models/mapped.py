"""Tensors of safetensors files as views of the files: all processes of a machine share them, in the system's page cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from darwinlm.errors import DamagedFileError


class MappedTensors:
    """Tensors by name, mapped and never copied; they must not be written to.

    Args:
        files: where each tensor lies.

    Raises:
        DamagedFileError: a file is damaged; or, when a tensor is asked for, it is no longer the file that it was.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._paths = dict(files)
        self._stamps = {path: _stamp(path) for path in set(self._paths.values())}
        self._tensors: dict[str, Tensor] = {}
        for path in self._stamps:
            try:
                with safe_open(path, framework="pt") as file:
                    self._tensors |= {name: file.get_tensor(name) for name, where in files.items() if where == path}
            except (OSError, SafetensorError) as fault:
                raise DamagedFileError(
                    f"'{path}' is damaged: {fault}. Download or copy the checkpoint again."
                ) from fault

    def __getitem__(self, name: str) -> Tensor:
        path = self._paths[name]
        if _stamp(path) != self._stamps[path]:
            raise DamagedFileError(
                f"'{path}' was changed while it was in use. Put the checkpoint back as it was; the same command goes on."
            )
        return self._tensors[name]


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as fault:
        raise DamagedFileError(f"'{path}' is missing: {fault.strerror}. Put the checkpoint back.") from fault
    return found.st_ino, found.st_size, found.st_mtime_ns
