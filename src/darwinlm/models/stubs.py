"""Stubs: the smallest real module that adds nothing, for engines in which every layer has attention and an MLP.

A stub attention has one query head for each of its KV heads and a zero output matrix; a stub MLP has 32 channels and a
zero down projection. Their norms are ones, since the norm of an absent module is absent, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.source import ModelSource

CHANNELS = 32
"""Channels of a stub MLP: what quantized formats and kernels take as a row."""


def stubbed(shape: ModelShape, heads: int = 1) -> ModelShape:
    """The shape with stubs in place of absent modules; a stub attention has `heads` query and KV heads."""
    layers = [
        LayerWidths(widths.heads or heads, widths.kv_heads or heads, widths.intermediate or CHANNELS, widths.padding)
        for widths in shape.layers
    ]
    return shape.with_layers(layers)


def stubbed_layer(source: ModelSource, layer: int, tensors: Mapping[str, Tensor], heads: int = 1) -> dict[str, Tensor]:
    """All tensors of a layer, in the order of the model, keyed by their names within it.

    Args:
        source: the checkpoint.
        layer: which one.
        tensors: those that the checkpoint has, from `ModelSource.module`; stubs get their dtype and device.
        heads: query and KV heads of a stub attention.
    """
    widths = source.shape.layers[layer]
    like = torch.empty(0, dtype=source.dtype, device=next(iter(tensors.values())).device if tensors else "cpu")
    attention, mlp = {}, {}
    for name, tensor in tensors.items():
        (attention if name.startswith(("self_attn.", "input_layernorm.")) else mlp)[name] = tensor
    return {
        **(attention if widths.heads else attention_stub(source.shape, heads, like)),
        **(mlp if widths.intermediate else mlp_stub(source.shape, like)),
    }


def attention_stub(shape: ModelShape, heads: int, like: Tensor) -> dict[str, Tensor]:
    """The tensors of an attention that adds nothing, with the dtype and device of `like`."""
    rows, hidden = heads * shape.head_dim, shape.hidden
    stub = {"input_layernorm.weight": like.new_ones(hidden)}
    for part in "qkv":
        stub[f"self_attn.{part}_proj.weight"] = like.new_zeros(rows, hidden)
        if shape.qkv_bias:
            stub[f"self_attn.{part}_proj.bias"] = like.new_zeros(rows)
    stub["self_attn.o_proj.weight"] = like.new_zeros(hidden, rows)
    if shape.o_bias:
        stub["self_attn.o_proj.bias"] = like.new_zeros(hidden)
    if shape.family.qk_norm:
        stub |= {f"self_attn.{part}_norm.weight": like.new_ones(shape.head_dim) for part in "qk"}
    return stub


def mlp_stub(shape: ModelShape, like: Tensor) -> dict[str, Tensor]:
    """The tensors of an MLP that adds nothing, with the dtype and device of `like`."""
    stub = {"post_attention_layernorm.weight": like.new_ones(shape.hidden)}
    for part in ("gate", "up"):
        stub[f"mlp.{part}_proj.weight"] = like.new_zeros(CHANNELS, shape.hidden)
        if shape.mlp_bias:
            stub[f"mlp.{part}_proj.bias"] = like.new_zeros(CHANNELS)
    stub["mlp.down_proj.weight"] = like.new_zeros(shape.hidden, CHANNELS)
    if shape.mlp_bias:
        stub["mlp.down_proj.bias"] = like.new_zeros(shape.hidden)
    return stub
