"""The formats that modules may be stored in: types of ggml, and packed whole numbers as vLLM reads them; their blocks, sizes,
and what stands in where rows do not split."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

WHOLE = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of a number that is stored as it is."""
BLOCKS = {
    "q8_0": (32, 34), "q6_k": (256, 210), "q5_1": (32, 24), "q5_0": (32, 22), "q5_k": (256, 176), "q4_1": (32, 20),
    "q4_0": (32, 18), "iq4_nl": (32, 18), "q4_k": (256, 144), "q3_k": (256, 110), "q2_k": (256, 84),
    "w8a16": (128, 130), "w8a16_64": (64, 66), "w8a16_32": (32, 34),
    "w4a16": (128, 66), "w4a16_64": (64, 34), "w4a16_32": (32, 18),
}  # fmt: skip
"""Name -> columns of a row that share a block, and its bytes."""
PACKED = {name: int(name[1]) for name in BLOCKS if name.startswith("w")}
"""Those of compressed-tensors: a block is whole numbers of so many bits and a bfloat16 scale."""
BY_GGUF = {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0"}
"""Those that the package gguf rounds to itself, to the bytes of llama.cpp; llama.cpp must do the others."""
SMALLER_BLOCKS = {
    "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q2_k": "q4_0",
    "w8a16": "w8a16_64", "w8a16_64": "w8a16_32", "w8a16_32": "bf16",
    "w4a16": "w4a16_64", "w4a16_64": "w4a16_32", "w4a16_32": "bf16",
}  # fmt: skip
"""What stands in where a row does not split: of ggml's blocks of 256 columns those of 32, as llama.cpp has it."""


def are_packed(names: Collection[str]) -> bool:
    """Whether formats that are searched together are those of packed whole numbers, and not of ggml."""
    return bool(names) and PACKED.keys() >= set(names)


def fitting(name: str, columns: int) -> str:
    """The type itself, or what stands in for it where rows of so many columns do not split into its blocks."""
    while name in BLOCKS and columns % BLOCKS[name][0]:
        name = SMALLER_BLOCKS.get(name, "f16")
    return name


def stored_bytes(shape: Sequence[int], name: str) -> int:
    """Bytes of a matrix (..., C), or of what stands in for it; of a vector, which is float32 always."""
    if len(shape) == 1:
        return shape[0] * WHOLE["f32"]
    name = fitting(name, shape[-1])
    if name in WHOLE:
        return math.prod(shape) * WHOLE[name]
    block, size = BLOCKS[name]
    return math.prod(shape) // block * size


def by_size(names: Sequence[str]) -> tuple[str, ...]:
    """Each once, the largest first."""
    return tuple(sorted(set(names), key=lambda name: (-BLOCKS[name][1] / BLOCKS[name][0], name)))


def ggml_type(name: str) -> Any:
    """The package's own constant of a type."""
    import gguf

    return gguf.GGMLQuantizationType[name.upper()]
