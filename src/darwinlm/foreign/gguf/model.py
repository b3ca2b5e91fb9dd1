"""What model a GGUF file holds: its family and widths, its configuration in transformers, and its tensors by our names.

Four graphs of llama.cpp are read: `llama` (also Mistral), `qwen2`, `qwen3`, and the two that `darwinlm export` writes,
`deci` and `openelm`. Which family that is, the tensors decide: biases and norms of queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor
from transformers import AutoConfig

from darwinlm.errors import RequestError
from darwinlm.foreign.gguf.reading import GgufFile
from darwinlm.foreign.gguf.words import end_ids, special_ids
from darwinlm.models.family import Family, known_families
from darwinlm.models.llama_cpp import HEAD_NORMS, NAMES, rope
from darwinlm.models.llama_cpp_files import as_ours, place_of
from darwinlm.models.shape import LayerWidths, ModelShape

_OURS = ("deci", "openelm")
"""Graphs in which every layer has widths of its own, and zero stubs stand for modules that are gone."""
ARCHITECTURES = ("llama", "qwen2", "qwen3", *_OURS)
_FACTORS = "rope_freqs.weight"
_READ = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
)
_NEEDED = _READ[:4] + ("attention.head_count", "attention.layer_norm_rms_epsilon")
_WITHOUT_EFFECT = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "pooling_type": 0,
    "rope.scaling.finetuned": None,
    "tensor_data_layout": None,
}
"""Settings that change nothing: at this value, or (None) at any."""


@dataclass(frozen=True)
class Held:
    """The model of a file."""

    family: Family
    config: Any
    """Of transformers, with the widest layer's widths."""
    shape: ModelShape
    """With the widths of every layer; stubs count as they stand in the file."""


def held_model(file: GgufFile) -> Held:
    """Family, configuration and widths, from the header alone.

    Raises:
        RequestError: the file holds something that is not known here, or that transformers would compute otherwise.
    """
    _require_known(file)
    biases = {name for name in NAMES.values() if f"blk.0.{name}.bias" in file.shapes}
    norms, layers = f"blk.0.{HEAD_NORMS[0]}.weight" in file.shapes, _layers(file)
    family = known_families()["qwen3" if norms else "qwen2" if biases == {"attn_q", "attn_k", "attn_v"} else "llama"]
    widest = replace(max(layers, key=lambda w: (w.heads, w.kv_heads)), intermediate=max(w.intermediate for w in layers))
    special, ends = special_ids(file), end_ids(file)
    hidden, head_dim = file.get("embedding_length"), _head_dim(file, layers[0])
    values = {
        "hidden_size": hidden,
        "intermediate_size": widest.intermediate,
        "num_hidden_layers": len(layers),
        "num_key_value_heads": widest.kv_heads,
        "head_dim": head_dim,
        "vocab_size": file.shapes["token_embd.weight"][0],
        "max_position_embeddings": file.get("context_length"),
        "rms_norm_eps": _shortest(file.get("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.shapes,
        "bos_token_id": special.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": special.get("padding"),
        "rope_parameters": {"rope_type": "default", "rope_theta": _shortest(file.get("rope.freq_base", 10000.0))},
    }
    if family.model_type != "qwen2":
        values |= {"attention_bias": "attn_output" in biases}
    if family.model_type == "llama":
        values |= {"mlp_bias": "ffn_down" in biases}
    config = _configuration(family, values, widest.heads)
    shape = ModelShape.of(family, config).with_layers(layers)
    config.rope_parameters = _rope_parameters(file, family, config, shape)
    _require_tensors(file, shape)
    return Held(family, config, shape)


def _configuration(family: Family, values: dict[str, Any], heads: int) -> Any:
    """The stock configuration with the least count of query heads, from `heads` on, that its class takes.

    Some take divisors of the hidden size alone; then the model counts as pruned from such a one.
    """
    faults: list[Exception] = []
    for count in range(heads, max(heads, values["hidden_size"]) + 1, values["num_key_value_heads"] or 1):
        try:
            return AutoConfig.for_model(family.model_type, num_attention_heads=count, **values)
        except StrictDataclassClassValidationError as fault:
            faults.append(fault)
    raise faults[0]


def without_stubs(file: GgufFile, held: Held) -> Held:
    """The same without modules that add nothing, in files of graphs that must have every module."""
    if file.architecture not in _OURS:
        return held
    layers = []
    for index, widths in enumerate(held.shape.layers):
        gone = {
            kind: not any(file.tensor(f"blk.{index}.{output}.{part}").any() for part in parts)
            for kind, output, parts in (
                ("attention", "attn_output", ("weight", "bias") if held.shape.biases[1] else ("weight",)),
                ("mlp", "ffn_down", ("weight", "bias") if held.shape.biases[2] else ("weight",)),
            )
        }
        own = replace(widths, heads=0, kv_heads=0) if gone["attention"] else widths
        layers.append(replace(own, intermediate=0) if gone["mlp"] else own)
    return replace(held, shape=held.shape.with_layers(layers))


def tensors(file: GgufFile, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """(our full name, float32 tensor), in the order of the model; what the shape has not is left out."""
    for name in shape.outlines():
        place = place_of(name, file.shapes)
        yield name, as_ours(file.tensor(place.name), place, shape, file.architecture)


def _require_known(file: GgufFile) -> None:
    """Refuse other graphs, other parts of a model than the whole, and settings that would change what is computed."""
    if file.architecture not in ARCHITECTURES:
        raise RequestError(
            f"'{file.path}' holds the architecture '{file.architecture or 'none'}', and known are {', '.join(ARCHITECTURES)}. "
            "Take the model's own checkpoint, if DarwinLM knows its family."
        )
    lacking = [name for name in _NEEDED if not file.get(name)]
    lacking += ["token_embd.weight"] * ("token_embd.weight" not in file.shapes)
    if lacking:
        raise RequestError(f"'{file.path}' is not a whole model: it lacks {', '.join(lacking)}.")
    prefix = f"{file.architecture}."
    for key, value in file.values.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _READ:
            continue
        if name == "attention.sliding_window" and not 0 < int(value) < file.get("context_length"):
            continue
        if name not in _WITHOUT_EFFECT or _WITHOUT_EFFECT[name] not in (None, value):
            raise RequestError(
                f"'{file.path}' has the setting {key} = {value!r:.60}, with which transformers would compute something else "
                "here. Take the model's own checkpoint."
            )


def _layers(file: GgufFile) -> list[LayerWidths]:
    """The widths of every layer, which a file has once or as a list."""
    count = file.get("block_count")
    heads = file.get("attention.head_count")
    columns = [heads, file.get("attention.head_count_kv", heads), file.get("feed_forward_length")]
    listed = [value if isinstance(value, list) else [value] * count for value in columns]
    if any(len(value) != count or None in value for value in listed):
        raise RequestError(f"'{file.path}' is damaged: it does not say the widths of all of its {count} layers.")
    return [LayerWidths(int(heads), int(keys), int(width)) for heads, keys, width in zip(*listed)]


def _head_dim(file: GgufFile, first: LayerWidths) -> int:
    told = file.get("attention.key_length", file.get("rope.dimension_count"))
    head_dim = int(told or file.get("embedding_length") // first.heads)
    others = {file.get(name, head_dim) for name in ("attention.value_length", "rope.dimension_count")}
    if others != {head_dim}:
        raise RequestError(
            f"'{file.path}' has heads of {head_dim} numbers of which others are rotated or put out "
            f"({', '.join(map(str, sorted(others)))}). Take the model's own checkpoint."
        )
    return head_dim


def _shortest(value: float) -> float:
    """The shortest decimal of a float32: 1e-05 and not 9.999999747378752e-06."""
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{value} is neither an epsilon nor a base or factor of rotary frequencies")
    return float(str(np.float32(value)))


def _rope_parameters(file: GgufFile, family: Family, config: Any, shape: ModelShape) -> dict[str, Any]:
    """The rotary embedding; where the file has factors of its frequencies, settings that give the same ones."""
    default, kind = config.rope_parameters, file.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        scaled = {**default, "rope_type": kind, "factor": _shortest(file.get("rope.scaling.factor", 1.0))}
        if kind == "yarn":
            scaled["original_max_position_embeddings"] = file.get(
                "rope.scaling.original_context_length", file.get("context_length")
            )
        default = scaled
    elif kind != "none":
        raise RequestError(
            f"'{file.path}' has RoPE of type '{kind}', which is not read. Take the model's own checkpoint."
        )
    if _FACTORS not in file.shapes:
        return default
    wanted = file.tensor(_FACTORS)
    for tried in _candidates(default, wanted):
        config.rope_parameters = tried
        found = rope(family, config, shape).factors
        if torch.allclose(torch.ones_like(wanted) if found is None else found, wanted, rtol=1e-4):
            return tried
    raise RequestError(
        f"'{file.path}' stretches its rotary frequencies by factors ({wanted[0]:g} to {wanted[-1]:g}) that no setting of "
        "transformers gives. Take the model's own checkpoint."
    )


def _candidates(default: Mapping[str, Any], factors: Tensor) -> Iterator[dict[str, Any]]:
    """Settings that could give such factors: none, the same for all, or those of Llama 3 for some first context."""
    yield dict(default)
    largest = round(factors.max().item(), 4)
    yield {**default, "rope_type": "linear", "factor": largest}
    for power in (13, *range(4, 20)):  # 8192 before all others
        yield {
            **default,
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1 << power,
        }


def _require_tensors(file: GgufFile, shape: ModelShape) -> None:
    """Compare names and shapes with what the configuration wants: nothing may be missing, and nothing left over."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, sizes in shape.outlines().items():
        place = place_of(name, file.shapes)
        before = wanted.get(place.name, (0,))[0] if place.fused else 0  # three of ours in one
        wanted[place.name] = (before + sizes[0], *sizes[1:])
    there = {name: sizes for name, sizes in file.shapes.items() if name != _FACTORS}
    for name, sizes in wanted.items():
        if there.get(name) != sizes:
            raise RequestError(
                f"'{file.path}' does not fit its header: '{name}' should be {sizes} and is {there.get(name, 'missing')}."
            )
    if extra := sorted(there.keys() - wanted.keys()):
        raise RequestError(
            f"'{file.path}' holds tensors that this family has not in transformers ({', '.join(extra[:3])}), so the checkpoint "
            "would compute something else. Take the model's own checkpoint."
        )
