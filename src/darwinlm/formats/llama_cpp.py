"""llama.cpp's quantizer of rows, by its C API, out of whichever package here brings its library."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darwinlm.errors import RequestError

_LIBRARIES = {"xllamacpp": ("xllamacpp*.so", "xllamacpp*.pyd"), "llama_cpp": ("lib/*ggml-base.*",)}
"""Package -> where in it the library may be."""


def _files() -> Iterator[Path]:
    for package, patterns in _LIBRARIES.items():
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            yield from (path for pattern in patterns for path in sorted(Path(folder).glob(pattern)))


@functools.cache
def library() -> Any:
    """llama.cpp's `ggml_quantize_chunk`.

    Raises:
        RequestError: no package here has it.
    """
    for path in _files():
        try:
            found = ctypes.CDLL(str(path)).ggml_quantize_chunk
        except (OSError, AttributeError):
            continue
        number, place = ctypes.c_int64, ctypes.c_void_p
        found.argtypes = [ctypes.c_int, place, place, number, number, number, place]
        found.restype = ctypes.c_size_t
        return found
    raise RequestError(
        "K-quants are made by llama.cpp's own code, and no package here brings it. Install it with: pip install "
        "'darwinlm[llamacpp]', or choose --dtype f16, bf16, f32 or q8_0."
    )


def quantize(values: np.ndarray, kind: Any, importance: np.ndarray | None) -> np.ndarray:
    """The rows of a matrix in a type of ggml.

    Args:
        values: (R, C) float32.
        kind: the type, a `gguf.GGMLQuantizationType`.
        importance: (C,) float32: what an error in a column costs, up to a factor; None where all cost the same.

    Returns:
        (R, bytes of a row) uint8.
    """
    import gguf

    rows, columns = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = np.ascontiguousarray(values, dtype=np.float32)
    stored = np.empty((rows, columns // block * size), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)

    def part(first: int, last: int) -> None:
        library()(
            int(kind),
            values.ctypes.data,
            stored.ctypes.data,
            first * columns,
            last - first,
            columns,
            None if weights is None else weights.ctypes.data,
        )

    cuts = np.linspace(0, rows, torch.get_num_threads() + 1).astype(int).tolist()
    with ThreadPoolExecutor(len(cuts)) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:]))
    return stored
