"""What llama.cpp can compute of our models: which of its graphs, which tensors it wants, and what it would get wrong.

Most of its graphs read the widths of layer 0 for all layers. Two do not: `deci` (written for pruned Llamas) and
`openelm` (queries and keys normalized per head, the head tied to the embedding). Both go wrong in some way where a
module is absent, so stubs stand in (`stubs.py`).

Letters: Q = query heads, N = KV heads, D = head_dim, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.models.family import Family
from darwinlm.models.heterogeneous import heterogeneous_config, modeling
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource
from darwinlm.models.stubs import stubbed, stubbed_layer

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Name of a module within its layer -> llama.cpp's."""
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a checkpoint as llama.cpp takes it."""

    base: float
    factors: Tensor | None
    """(D / 2,): by what each frequency base^(-2i/D) is divided; None where all are 1."""
    scale: float
    """What cosines and sines are multiplied by."""


def architecture(source: ModelSource) -> str:
    """The graph of llama.cpp that computes this family layer by layer."""
    return "openelm" if source.family.qk_norm else "deci"


def llama_cpp_faults(source: ModelSource) -> list[str]:
    """Why llama.cpp cannot compute a checkpoint, or would silently compute something else; empty where it can."""
    config, shape, found = source.config, source.shape, []
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if source.family.qk_norm:
        if not shape.tied:
            found.append(
                "normalizes queries and keys and has a head of its own; the only graph of llama.cpp that does the first "
                "with layers of different widths (`openelm`) ties the head to the embedding"
            )
        if shape.qkv_bias or shape.o_bias:
            found.append("has attention biases, which the `openelm` graph of llama.cpp leaves out")
        if kind != "default":
            found.append(f"has RoPE of type '{kind}', which the `openelm` graph of llama.cpp leaves out")
    elif kind not in _FIXED_ROPE:
        found.append(f"has RoPE of type '{kind}', whose frequencies change with the length of the text")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append("rotates only a part of each head")
    if config.hidden_act != "silu":
        found.append(f"has the activation '{config.hidden_act}'; these graphs of llama.cpp have SiLU alone")
    if (window := sliding_window(config)) is not None and window < config.max_position_embeddings:
        found.append(
            f"attends to the last {window} tokens only, which these graphs of llama.cpp leave out. If that many are enough, "
            f"set `sliding_window` to null and `max_position_embeddings` to {window} in its config.json"
        )
    return found


def sliding_window(config: Any) -> int | None:
    """The window of a model in which some layer attends to a part of the text; None where all see everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    if not getattr(config, "use_sliding_window", True):
        return None
    return getattr(config, "sliding_window", None)


def rope_of(source: ModelSource) -> Rope:
    """The rotary embedding of a checkpoint."""
    return rope(source.family, source.config, source.shape)


def rope(family: Family, config: Any, shape: ModelShape) -> Rope:
    """The rotary embedding of a configuration, read from the very buffer that the model computes with."""
    own = heterogeneous_config(family, config, shape.layers)
    rotary = modeling(family)._Rotary(config=own.per_layer_config[0])
    base = float(config.rope_parameters["rope_theta"])
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    factors = 1.0 / (base**exponents * rotary.inv_freq)
    changed = config.rope_parameters.get("rope_type", "default") != "default"
    return Rope(base, factors if changed else None, float(rotary.attention_scaling))


def outlines(source: ModelSource) -> dict[str, tuple[int, ...]]:
    """{llama.cpp's tensor name: shape}, in the order of `tensors`, without reading any numbers."""
    return {name: tuple(tensor.shape) for name, tensor in _tensors(source, meta=True)}


def tensors(source: ModelSource) -> Iterator[tuple[str, Tensor]]:
    """(llama.cpp's tensor name, tensor in float32), layer by layer."""
    yield from ((name, tensor.float().contiguous()) for name, tensor in _tensors(source, meta=False))


def _tensors(source: ModelSource, *, meta: bool) -> Iterator[tuple[str, Tensor]]:
    read = source.outline if meta else source.module
    rope = rope_of(source)
    shape = stubbed(source.shape)
    yield "token_embd.weight", read("model.embed_tokens.")["weight"]
    if rope.factors is not None:
        yield "rope_freqs.weight", rope.factors
    for index, widths in enumerate(shape.layers):
        layer = stubbed_layer(source, index, read(f"model.layers.{index}."))
        if source.family.qk_norm:
            layer = _fuse(layer)
        else:
            _interleave(layer, "q", widths.heads, rope.scale**2)  # q k^T takes the scale of both rotations
            _interleave(layer, "k", widths.kv_heads, 1.0)
        for name, tensor in layer.items():
            module, kind = name.rsplit(".", 1)
            yield f"blk.{index}.{NAMES.get(module, module)}.{kind}", tensor
    yield "output_norm.weight", read("model.norm.")["weight"]
    if not shape.tied:
        yield "output.weight", read("lm_head.")["weight"]


def _fuse(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v as one matrix ((Q + 2 N) D, H)."""
    parts = [layer.pop(f"self_attn.{part}_proj.weight") for part in "qkv"]
    return {**layer, "attn_qkv.weight": torch.cat(parts)}


def _interleave(layer: dict[str, Tensor], part: str, heads: int, scale: float) -> None:
    """Reorder rows: transformers rotates row i of a head with row i + D/2, `deci` row 2i with row 2i + 1."""
    for kind in ("weight", "bias"):
        name = f"self_attn.{part}_proj.{kind}"
        if name in layer:
            rows = layer[name].float() * scale
            layer[name] = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
