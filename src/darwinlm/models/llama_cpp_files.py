"""Where a tensor of ours lies in a GGUF file of llama.cpp, and how its rows are put back: the way back of `llama_cpp`.

Letters: Q = query heads, N = KV heads, D = head_dim, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from darwinlm.models.llama_cpp import INTERLEAVED, NAMES
from darwinlm.models.shape import ModelShape

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Place:
    """Of one of our tensors in a file."""

    name: str
    """What it is called there."""
    layer: int | None
    part: str
    """Its module within the layer, such as `k_proj`."""
    fused: bool
    """Whether q, k and v are one matrix ((Q + 2 N) D, H)."""


def place_of(name: str, there: Collection[str]) -> Place:
    """Where one of our tensors lies.

    Args:
        name: in full, such as `model.layers.0.mlp.up_proj.weight`.
        there: names of all tensors of the file.
    """
    module, kind = name.rsplit(".", 1)
    if not name.startswith("model.layers."):
        return Place(f"{_OUTSIDE[module]}.{kind}", None, module, False)
    _, _, layer, inner = module.split(".", 3)
    part, together = inner.removeprefix("self_attn."), f"blk.{layer}.attn_qkv.{kind}"
    fused = part in ("q_proj", "k_proj", "v_proj") and together in there
    return Place(together if fused else f"blk.{layer}.{NAMES[inner]}.{kind}", int(layer), part, fused)


def as_ours(stored: Tensor, place: Place, shape: ModelShape, architecture: str) -> Tensor:
    """A tensor as transformers has it.

    Args:
        stored: as it is in the file.
        place: of it.
        shape: of the model.
        architecture: of the file.
    """
    if place.layer is not None and place.fused:
        widths = shape.layers[place.layer]
        counts = (widths.heads, widths.kv_heads, widths.kv_heads)
        stored = stored.split([count * shape.head_dim for count in counts])["qkv".index(place.part[0])].clone()
    if place.part in ("q_proj", "k_proj") and architecture in INTERLEAVED:
        return stored.unflatten(0, (-1, shape.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
    return stored
