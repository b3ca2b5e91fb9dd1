"""Which type each matrix of a K-quantized file gets: the mixtures of llama.cpp's own `llama-quantize`.

The matrices that errors come from most (values, outputs of MLPs, the head) get more bits in some layers. Rows that do not
split into blocks of a type get one of smaller blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Layers = Callable[[int, int], bool]
"""Whether a layer, of so many, is one of those that a rule is for."""


def _all(layer: int, layers: int) -> bool:
    return True


def _first(part: int) -> Layers:
    return lambda layer, layers: layer < layers // part


def _before(count: int) -> Layers:
    return lambda layer, layers: layer < count


def _spread(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


_VALUES, _DOWN, _OUT = ("attn_v", "attn_qkv"), ("ffn_down",), ("attn_output",)
_Rule = tuple[tuple[str, ...], str, Layers]
MIXTURES: Mapping[str, tuple[str, tuple[_Rule, ...]]] = {
    "q3_k_s": ("Q3_K", ()),
    "q3_k_m": (
        "Q3_K",
        (
            (_VALUES, "Q5_K", _before(2)),
            (_DOWN, "Q5_K", _first(16)),
            (_VALUES + _DOWN + _OUT, "Q4_K", _all),
        ),
    ),
    "q3_k_l": ("Q3_K", ((_VALUES + _DOWN + _OUT, "Q5_K", _all),)),
    "q4_k_s": ("Q4_K", ((_VALUES, "Q5_K", _before(4)), (_DOWN, "Q5_K", _first(8)))),
    "q4_k_m": ("Q4_K", ((_VALUES + _DOWN, "Q6_K", _spread),)),
    "q5_k_s": ("Q5_K", ()),
    "q5_k_m": ("Q5_K", ((_VALUES + _DOWN, "Q6_K", _spread),)),
    "q6_k": ("Q6_K", ()),
}
"""Name of a file's type -> the type of its matrices, and the rules for some, of which the first that fits counts."""
SMALLER_BLOCKS = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Blocks of 256 columns -> of 32."""


def type_of(name: str, columns: int, layers: int, dtype: str, *, tied: bool) -> str:
    """The type of a matrix, by ggml's name.

    Args:
        name: llama.cpp's, such as `blk.3.attn_v.weight`.
        columns: of the matrix.
        layers: of the model.
        dtype: a key of `MIXTURES`.
        tied: whether the embedding is the head, too.
    """
    kind, rules = MIXTURES[dtype]
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K" if columns % 256 == 0 else _fitting("Q8_0", columns)
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        kind = next((k for parts, k, which in rules if part in parts and which(int(layer), layers)), kind)
    return kind if columns % 256 == 0 else _fitting(SMALLER_BLOCKS[kind], columns)


def _fitting(kind: str, columns: int) -> str:
    return kind if columns % 32 == 0 else "F16"
