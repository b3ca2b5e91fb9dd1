"""What llama.cpp can compute of our models: which of its graphs, which tensors it wants, and what it would get wrong.

Most of its graphs read the widths of layer 0 for all layers, so those are for layers that are alike: `llama`, `qwen3`, and the
mixtures of experts. Two are not: `deci` (written for pruned Llamas) and `openelm` (queries and keys normalized per head, the
head tied to the embedding). Both go wrong in some way where a module is absent, so stubs stand in (`stubs.py`). A family says
which ones compute it, or why none does.

Letters: Q = query heads, N = KV heads, D = head_dim, H = hidden size, E = experts, I = columns of each.
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
    "expert": "ffn_gate_inp",
}  # fmt: skip
ROUTER = "ffn_gate_inp.weight"
"""What llama.cpp's name of a router ends with."""
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
INTERLEAVED = ("llama", "deci")
"""Graphs that rotate row 2i of a head with row 2i + 1, where transformers rotates i with i + D/2. The others know nothing of
attention biases and of frequency factors."""
_SUMS_TO_ONE = {"llama": True, "qwen3moe": True, "olmoe": False}
"""Graph -> whether the router's weights of the experts that a token takes are divided by their sum."""


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a checkpoint as llama.cpp takes it."""

    base: float
    factors: Tensor | None
    """(D / 2,): by what each frequency base^(-2i/D) is divided; None where all are 1."""
    scale: float
    """What cosines and sines are multiplied by."""


def architecture(source: ModelSource, *, free: bool = False) -> str:
    """The graph of llama.cpp that computes a checkpoint; empty where none does.

    Args:
        source: the checkpoint.
        free: it is for models that are cut from it and whose layers differ.
    """
    if free or type(source.config).__name__ == "DarwinLMConfig":
        return source.family.graph or ""
    return source.family.stock_graph or ("llama" if source.family.graph == "deci" else "")


def llama_cpp_faults(source: ModelSource, *, free: bool = False) -> list[str]:
    """Why llama.cpp cannot compute a checkpoint, or would silently compute something else; empty where it can.

    Args:
        source: the checkpoint.
        free: what is asked is of models that are cut from it and whose layers differ.
    """
    config, family, graph, found = source.config, source.family, architecture(source, free=free), []
    remedy = (
        f" (--target.shape stock keeps them alike, for its graph `{family.stock_graph}`)" if family.stock_graph else ""
    )
    if not graph:
        return [f"{family.no_graph}, which no graph of llama.cpp computes with layers of different widths{remedy}"]
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if graph == "openelm" and not source.shape.tied:
        found.append(
            "normalizes queries and keys and has a head of its own; the only graph of llama.cpp that does the first "
            f"with layers of different widths (`openelm`) ties the head to the embedding{remedy}"
        )
    if graph not in INTERLEAVED:
        if any(source.shape.biases):
            found.append(f"has attention biases, which the `{graph}` graph of llama.cpp leaves out")
        if kind != "default":
            found.append(f"has RoPE of type '{kind}', which the `{graph}` graph of llama.cpp leaves out")
    elif kind not in _FIXED_ROPE:
        found.append(f"has RoPE of type '{kind}', whose frequencies change with the length of the text")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append("rotates only a part of each head")
    if family.experts and getattr(config, "norm_topk_prob", True) != _SUMS_TO_ONE[graph]:
        found.append(f"has `norm_topk_prob` {config.norm_topk_prob}, and the `{graph}` graph of llama.cpp the other")
    if graph == "olmoe" and any(w.kv_heads * source.shape.head_dim != source.shape.hidden for w in source.shape.layers):
        found.append("has fewer keys than the hidden size, which the `olmoe` graph of llama.cpp does not expect")
    if getattr(config, "clip_qkv", None) is not None:
        found.append(f"clips queries, keys and values, which the `{graph}` graph of llama.cpp leaves out")
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


def rope(family: Family, config: Any, shape: ModelShape) -> Rope:
    """The rotary embedding of a configuration, read from the very buffer that the model computes with."""
    rotary = Stock(family, config).decoder(torch.device("cpu")).rotary_emb
    base = float(config.rope_parameters["rope_theta"])
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    factors = 1.0 / (base**exponents * rotary.inv_freq)
    changed = config.rope_parameters.get("rope_type", "default") != "default"
    return Rope(base, factors if changed else None, float(rotary.attention_scaling))


def outlines(source: ModelSource, graph: str) -> dict[str, tuple[int, ...]]:
    """{llama.cpp's tensor name: shape} for a graph, in the order of `tensors`, without reading any numbers."""
    return {name: tuple(tensor.shape) for name, tensor in _tensors(source, graph, meta=True)}


def tensors(source: ModelSource, graph: str) -> Iterator[tuple[str, Tensor]]:
    """(llama.cpp's tensor name, tensor in float32), layer by layer, as a graph wants them."""
    yield from ((name, tensor.float().contiguous()) for name, tensor in _tensors(source, graph, meta=False))


def _tensors(source: ModelSource, graph: str, *, meta: bool) -> Iterator[tuple[str, Tensor]]:
    rotary, shape = rope(source.family, source.config, source.shape), stubbed(source.shape)
    yield "token_embd.weight", source.embedding(meta=meta)
    if rotary.factors is not None:
        yield "rope_freqs.weight", rotary.factors
    for index, widths in enumerate(shape.layers):
        layer = stubbed_layer(source, index, source.layer(index, meta=meta))
        for site in source.family.sites:
            for name, tensor in _of_site(source, graph, site, layer, widths, rotary).items():
                yield f"blk.{index}.{name}", tensor
    yield "output_norm.weight", source.final_norm(meta=meta)
    if not shape.tied:
        yield "output.weight", source.head(meta=meta).weight


def _of_site(
    source: ModelSource, graph: str, site: Site, layer: Mapping[str, Tensor], widths: LayerWidths, rope: Rope
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
    if site.kind == "mlp" and widths.experts:
        return _of_experts(found, widths.experts)
    if site.kind == "attention" and graph == "openelm":
        parts = [found.pop(f"attn_{part}.weight") for part in "qkv"]  # as one matrix ((Q + 2 N) D, H)
        return {**found, "attn_qkv.weight": torch.cat(parts)}
    if site.kind == "attention" and graph in INTERLEAVED and not source.family.rope_pairs:
        _interleave(found, "attn_q", widths.heads)
        _interleave(found, "attn_k", widths.kv_heads)
    if site.kind == "attention" and rope.scale != 1.0:  # q k^T takes the scale of both rotations
        found |= {name: found[name].float() * rope.scale**2 for name in found if name.startswith("attn_q.")}
    return found


def _of_experts(found: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The matrices of one wide MLP as llama.cpp has them, expert by expert: (E, I, H), and (E, H, I) of the output."""
    apart = {
        "ffn_gate": lambda matrix: matrix.unflatten(0, (count, -1)),
        "ffn_up": lambda matrix: matrix.unflatten(0, (count, -1)),
        "ffn_down": lambda matrix: matrix.unflatten(1, (count, -1)).transpose(0, 1),
    }
    rest = {name: tensor for name, tensor in found.items() if name.removesuffix(".weight") not in apart}
    return rest | {f"{name}_exps.weight": part(found[f"{name}.weight"]) for name, part in apart.items()}


def module_of(name: str) -> tuple[int, Kind] | None:
    """Layer and kind of the module that a tensor of llama.cpp's belongs to; None outside of the layers."""
    if not name.startswith("blk."):
        return None
    _, layer, part, _ = name.split(".")
    return int(layer), "attention" if part.startswith("attn") else "mlp"


def fed_alike(source: ModelSource) -> dict[str, list[str]]:
    """{matrix within a layer: llama.cpp's matrices within a layer that are fed the same}."""
    found: dict[str, list[str]] = {}
    for site in source.family.sites:
        for cut in site.cuts:
            fused = site.kind == "attention" and architecture(source) == "openelm"
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
