"""What llama.cpp can compute of our models: which of its graphs, which tensors it wants, and what it would get wrong.

Most of its graphs read the widths of layer 0 for all layers, so alike layers of Llama's kind are plain `llama`. Two do
not: `deci` (written for pruned Llamas) and `openelm` (queries and keys normalized per head, the head tied to the
embedding). Both go wrong in some way where a module is absent, so stubs stand in (`stubs.py`). A family says which one
computes it, or why none does.

Letters: Q = query heads, N = KV heads, D = head_dim, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.models.family import Family
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import Kind, Part, Site, attention, mlp
from darwinlm.models.source import ModelSource
from darwinlm.models.stock import Stock
from darwinlm.models.stubs import stubbed, stubbed_layer
from darwinlm.models.widths import LayerWidths
from darwinlm.models.zeros import activation

_PARTS: dict[Part, str] = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "gate": "ffn_gate", "up": "ffn_up",
}  # fmt: skip
_OUTPUTS = {"attention": "attn_output", "mlp": "ffn_down"}
_NORMS = {"attention": "attn_norm", "mlp": "ffn_norm"}
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
"""llama.cpp's names of norms of single queries and keys."""
NAMES = {
    **{cut.matrix: _PARTS[cut.part] for site in (attention(), mlp()) for cut in site.cuts},
    **{site.output: _OUTPUTS[site.kind] for site in (attention(), mlp())},
    **{site.norms[0]: _NORMS[site.kind] for site in (attention(), mlp())},
    **{norm.replace("attn_", "self_attn."): norm for norm in HEAD_NORMS},
}
"""Name of a module within a layer of Llama's kind -> llama.cpp's."""
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
    """The graph of llama.cpp that computes a checkpoint layer by layer, which has no `llama_cpp_faults`."""
    if source.family.graph is None:
        raise ValueError(f"no graph of llama.cpp computes {source.family}")
    stock = type(source.config).__name__ != "DarwinLMConfig"  # then layers are alike
    return "llama" if stock and source.family.graph == "deci" else source.family.graph


def llama_cpp_faults(source: ModelSource) -> list[str]:
    """Why llama.cpp cannot compute a checkpoint, or would silently compute something else; empty where it can."""
    config, shape, found = source.config, source.shape, []
    if source.family.graph is None:
        return [f"{source.family.no_graph}, which no graph of llama.cpp computes with layers of different widths"]
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if source.family.graph == "openelm":
        if not shape.tied:
            found.append(
                "normalizes queries and keys and has a head of its own; the only graph of llama.cpp that does the first "
                "with layers of different widths (`openelm`) ties the head to the embedding"
            )
        if any(shape.biases):
            found.append("has attention biases, which the `openelm` graph of llama.cpp leaves out")
        if kind != "default":
            found.append(f"has RoPE of type '{kind}', which the `openelm` graph of llama.cpp leaves out")
    elif kind not in _FIXED_ROPE:
        found.append(f"has RoPE of type '{kind}', whose frequencies change with the length of the text")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append("rotates only a part of each head")
    if activation(config) != "silu":
        found.append(f"has the activation '{activation(config)}'; these graphs of llama.cpp have SiLU alone")
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
    rotary = Stock(family, config).decoder(torch.device("cpu")).rotary_emb
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
    rope, shape = rope_of(source), stubbed(source.shape)
    yield "token_embd.weight", source.embedding(meta=meta)
    if rope.factors is not None:
        yield "rope_freqs.weight", rope.factors
    for index, widths in enumerate(shape.layers):
        layer = stubbed_layer(source, index, source.layer(index, meta=meta))
        for site in source.family.sites:
            for name, tensor in _of_site(source, site, layer, widths, rope).items():
                yield f"blk.{index}.{name}", tensor
    yield "output_norm.weight", source.final_norm(meta=meta)
    if not shape.tied:
        yield "output.weight", source.head(meta=meta).weight


def _of_site(
    source: ModelSource, site: Site, layer: Mapping[str, Tensor], widths: LayerWidths, rope: Rope
) -> dict[str, Tensor]:
    """The tensors of one module by llama.cpp's names."""
    found = {f"{_NORMS[site.kind]}.weight": layer[f"{site.norms[0]}.weight"]}
    for part in _parts(site):
        for kind, rows in site.part(part, layer, widths.counts).items():
            found[f"{_PARTS[part]}.{kind}"] = rows
    for name, tensor in layer.items():
        matrix, _, kind = name.rpartition(".")
        if matrix == site.output:
            found[f"{_OUTPUTS[site.kind]}.{kind}"] = tensor
        elif (known := NAMES.get(matrix)) in HEAD_NORMS and matrix.startswith(site.module):
            found[f"{known}.{kind}"] = tensor
    if site.kind == "attention" and source.family.graph == "openelm":
        parts = [found.pop(f"attn_{part}.weight") for part in "qkv"]  # as one matrix ((Q + 2 N) D, H)
        return {**found, "attn_qkv.weight": torch.cat(parts)}
    if site.kind == "attention" and not source.family.rope_pairs:
        _interleave(found, "attn_q", widths.heads)
        _interleave(found, "attn_k", widths.kv_heads)
    if site.kind == "attention" and rope.scale != 1.0:  # q k^T takes the scale of both rotations
        found |= {name: found[name].float() * rope.scale**2 for name in found if name.startswith("attn_q.")}
    return found


def module_of(name: str) -> tuple[int, Kind] | None:
    """Layer and kind of the module that a tensor of llama.cpp's belongs to; None outside of the layers."""
    if not name.startswith("blk."):
        return None
    _, layer, part, _ = name.split(".")
    return int(layer), "attention" if part.startswith("attn") else "mlp"


def fed_alike(family: Family) -> dict[str, list[str]]:
    """{matrix within a layer: llama.cpp's matrices within a layer that are fed the same}."""
    found: dict[str, list[str]] = {}
    for site in family.sites:
        for cut in site.cuts:
            fused = site.kind == "attention" and family.graph == "openelm"
            found.setdefault(cut.matrix, []).append("attn_qkv" if fused else _PARTS[cut.part])
        found[site.output] = [_OUTPUTS[site.kind]]
    return found


def _parts(site: Site) -> list[Part]:
    return list(dict.fromkeys(cut.part for cut in site.cuts))


def _interleave(found: dict[str, Tensor], part: str, heads: int) -> None:
    """Reorder rows: transformers rotates row i of a head with row i + D/2, `deci` row 2i with row 2i + 1."""
    for name in (f"{part}.weight", f"{part}.bias"):
        if name in found:
            found[name] = found[name].unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
