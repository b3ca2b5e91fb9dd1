"""Stubs: the smallest real module that adds nothing, for engines in which every layer has attention and an MLP.

A stub attention has one query head for each of its KV heads, a stub MLP has 32 channels. Norms of stubs are ones, since
those of an absent module are absent, too; everything else is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from darwinlm.models.experts import joined
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import KINDS
from darwinlm.models.source import ModelSource
from darwinlm.models.widths import LayerWidths

CHANNELS = 32
"""Channels of a stub MLP: what quantized formats and kernels take as a row."""


def stubbed(shape: ModelShape, heads: int = 1) -> ModelShape:
    """The shape with stubs in place of absent modules; a stub attention has `heads` query and KV heads."""
    experts = shape.chosen if shape.original.experts else 0

    def filled(widths: LayerWidths) -> LayerWidths:
        attention = {} if widths.heads else {"heads": heads, "kv_heads": heads}
        mlp = {} if widths.intermediate else {"intermediate": CHANNELS, "experts": experts}
        return replace(widths, **attention, **mlp).as_in(widths)

    layers = [filled(widths) for widths in shape.layers]
    return shape.with_layers(layers)


def stubbed_layer(source: ModelSource, layer: int, tensors: Mapping[str, Tensor], heads: int = 1) -> dict[str, Tensor]:
    """All tensors of a layer, keyed by their names within it: those of stubs, and those that are there.

    Args:
        source: the checkpoint.
        layer: which one.
        tensors: those that the checkpoint has, from `ModelSource.layer`; stubs get their dtype and device.
        heads: query and KV heads of a stub attention.
    """
    like = torch.empty(0, dtype=source.dtype, device=next(iter(tensors.values())).device if tensors else "cpu")
    own = source.shape.layers[layer]
    absent = stubbed(source.shape, heads).layers[layer].without(kind for kind in KINDS if own.has(kind))
    outlines = source.shape.stock.outlines(layer, absent)
    stubs = {name: _stub(name, size, like) for name, size in outlines.items()}
    return {**joined(stubs, source.family.experts), **tensors}


def _stub(name: str, size: tuple[int, ...], like: Tensor) -> Tensor:
    is_norm = "norm" in name.split(".")[-2]
    return like.new_ones(size) if is_norm else like.new_zeros(size)
