"""Which type each matrix of a K-quantized file gets: the mixtures of llama.cpp's own `llama-quantize`.

The matrices that errors come from most (values, outputs of MLPs, the head) get more bits in some layers. Rows that do not
split into blocks of a type get one of smaller blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from darwinlm.formats.types import fitting

Layers = Callable[[int, int], bool]
"""Whether a layer, of so many, is one of those that a rule is for."""


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
    "q3_k_s": ("q3_k", ()),
    "q3_k_m": (
        "q3_k",
        (
            (_VALUES, "q5_k", _before(2)),
            (_DOWN, "q5_k", _first(16)),
            (_VALUES + _DOWN + _OUT, "q4_k", _first(1)),
        ),
    ),
    "q3_k_l": ("q3_k", ((_VALUES + _DOWN + _OUT, "q5_k", _first(1)),)),
    "q4_k_s": ("q4_k", ((_VALUES, "q5_k", _before(4)), (_DOWN, "q5_k", _first(8)))),
    "q4_k_m": ("q4_k", ((_VALUES + _DOWN, "q6_k", _spread),)),
    "q5_k_s": ("q5_k", ()),
    "q5_k_m": ("q5_k", ((_VALUES + _DOWN, "q6_k", _spread),)),
    "q6_k": ("q6_k", ()),
}
"""Name of a file's type -> the type of its matrices, and the rules for some, of which the first that fits counts."""


def type_of(name: str, columns: int, layers: int, dtype: str, *, tied: bool) -> str:
    """The type of a matrix.

    Args:
        name: llama.cpp's, such as `blk.3.attn_v.weight`.
        columns: of the matrix.
        layers: of the model.
        dtype: a key of `MIXTURES`.
        tied: whether the embedding is the head, too.
    """
    kind, rules = MIXTURES[dtype]
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return fitting("q6_k", columns)
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        kind = next((k for parts, k, which in rules if part in parts and which(int(layer), layers)), kind)
    return fitting(kind, columns)
