"""config.json, read without trust: what it says must be possible before anything is sized, loaded or downloaded by it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from darwinlm.errors import RequestError, first_line
from darwinlm.models.family import Family, family_of
from darwinlm.models.heterogeneous import modeling
from darwinlm.models.obstacles import EXPERTS
from darwinlm.models.shape import ModelShape
from darwinlm.models.widths import LINEAR, PADDING

LARGEST = {
    "vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_hidden_layers": 1 << 12, "linear_conv_kernel_dim": 1 << 10,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads"), 1 << 14),
    **dict.fromkeys(("head_dim", "linear_key_head_dim", "linear_value_head_dim"), 1 << 14),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 1 << 22),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), 1 << 16),
    **dict.fromkeys(("sliding_window", "max_position_embeddings"), 1 << 40),
}  # fmt: skip
"""Sizes that no model reaches; a configuration that asks for more is damaged or hostile."""
_LAYER_WIDTHS = (
    "num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size", "num_experts",
    "num_local_experts",
)  # fmt: skip
_MODULES = ("attention", "mlp")
_HOW_IT_RUNS = (
    "attn_implementation", "_attn_implementation", "auto_map", "base_model_ep_plan", "base_model_pp_plan", "base_model_tp_plan",
    "chunk_size_feed_forward", "experts_implementation", "kv_sharing_modes", "output_attentions", "output_hidden_states",
    "return_dict", "torchscript", "tp_plan", "use_cache",
)  # fmt: skip
"""Fields that say how a program ran the model, not what it is."""
_INNER = ("text_config", "vision_config", "audio_config")
_MORE_THAN_WEIGHTS = ("kv_cache_scheme", "sparsity_config", "transform_config")
"""Entries of a quantization that change more than how weights are stored."""
_QUANTIZED = ("quantization_config", "compression_config", "quantization")


def read_config(folder: Path, name: str, *, packed: bool = False) -> tuple[Family, Any]:
    """The family and the configuration object of a checkpoint; no weights are looked at.

    Args:
        folder: where it lies.
        name: as it was given.
        packed: take one whose matrices are packed whole numbers; the object then says nothing of that.

    Raises:
        RequestError: it is missing or unreadable, of an unknown family, impossible, quantized, or of experts.
    """
    path = folder / "config.json"
    if not path.is_file():
        run = (folder / "model/config.json").is_file()
        remedy = (
            f"Its model is '{Path(name) / 'model'}'"
            if run
            else "Give the folder of one, or a hub id such as Qwen/Qwen3-0.6B"
        )
        raise RequestError(f"'{name}' has no config.json, so it is no Hugging Face checkpoint. {remedy}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise unreadable(name, first_line(fault)) from fault
    if not isinstance(values, dict):
        raise unreadable(name, "it is no JSON object")
    family = family_of(values, name)
    if packed and is_packed(values):
        del values["quantization_config"]
    _refuse_other_weights(values, family, name)
    if found := list(_impossible(values)):
        raise unreadable(name, "; ".join(found))
    values = {
        key: value for key, value in values.items() if key not in _HOW_IT_RUNS and (key, value) != ("head_dim", None)
    }
    try:
        if (
            values.get("per_layer_config") is not None
        ):  # one of ours: the same class, without the code that ships with it
            config = modeling(family).DarwinLMConfig(**values)
        else:
            config = CONFIG_MAPPING[family.model_type].from_dict(values)
    except Exception as fault:  # whatever transformers makes of hostile values
        raise unreadable(name, reason(fault)) from fault
    dtype = getattr(config, "dtype", None)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise unreadable(name, f"its dtype is {dtype}, which weights that can be pruned are not stored in")
    if family.experts:
        family.experts.require_usable(config, name)
    return family, config


def is_packed(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is of packed whole numbers as `formats.packing` reads them, and says nothing else of numbers."""
    told = values.get("quantization_config")
    if not isinstance(told, dict) or any(told.get(key) for key in _MORE_THAN_WEIGHTS):
        return False
    groups = told.get("config_groups")
    held = list(groups.values()) if isinstance(groups, dict) else []
    named = (told.get("quant_method"), told.get("format")) == ("compressed-tensors", "pack-quantized")
    return named and bool(held) and all(map(_of_weights_alone, held))


def _of_weights_alone(group: Any) -> bool:
    """Whether modules of a group have whole numbers as weights, and nothing else of them is rounded."""
    if not isinstance(group, dict) or group.get("input_activations") or group.get("output_activations"):
        return False
    weights, plain = group.get("weights"), {"type": "int", "symmetric": True, "strategy": "group"}
    return isinstance(weights, dict) and weights.get("num_bits") in (4, 8) and plain.items() <= weights.items()


def unreadable(name: str, reason: str) -> RequestError:
    """What is said of a configuration that cannot be."""
    return RequestError(
        f"The config.json of '{name}' cannot be read: {reason.rstrip('.')}. Mend it, or download or copy the checkpoint again."
    )


def try_out(family: Family, config: Any, shape: ModelShape, name: str) -> None:
    """Build a layer of each type and run it without numbers, as transformers would.

    Raises:
        RequestError: transformers cannot.
    """
    types = getattr(config, "layer_types", None) or ["full_attention"] * len(shape.layers)
    try:
        for index in sorted({kind: index for index, kind in enumerate(types)}.values()):
            widths = shape.layers[index]
            if widths.experts:  # which of them a token takes is decided by numbers
                widths = widths.without({"mlp"})
            with torch.no_grad():
                shape.stock.dry_run(index, widths, 2)
    except Exception as fault:  # the library's own checks: activations, rotary embeddings, padding, masks
        raise unreadable(name, f"transformers cannot build such a layer ({reason(fault)})") from fault


def _refuse_other_weights(values: Mapping[str, Any], family: Family, name: str) -> None:
    if any(values.get(key) is not None for key in _QUANTIZED):
        raise RequestError(
            f"'{name}' is quantized. Take the checkpoint that it was made from; prune first, and quantize afterwards."
        )
    if not family.experts and (experts := [key for key in EXPERTS if values.get(key)]):
        raise RequestError(
            f"'{name}' is a mixture of experts ({experts[0]} in its config.json), which DarwinLM does not know of the family "
            f"{family}. Give a model whose layers have one MLP each."
        )
    if inner := [key for key in _INNER if values.get(key) is not None]:
        raise RequestError(
            f"'{name}' is a model of several parts ({inner[0]} in its config.json). Give its text model alone."
        )
    if values.get("transformers_weights"):
        raise RequestError(
            f"The config.json of '{name}' names weights of its own (transformers_weights), which is not supported. Rename them "
            "to model.safetensors and remove that line."
        )


def _impossible(values: Mapping[str, Any]) -> Iterator[str]:
    """Sizes that no model can have, found before a library allocates by them."""
    yield from _wrong_sizes(values, "")
    for key, value in _numbers(values):
        if not math.isfinite(value):
            yield f"{key} is {value}"
    epsilon = values.get("rms_norm_eps", 0.0)
    if isinstance(epsilon, (int, float)) and epsilon < 0:
        yield f"rms_norm_eps is {epsilon}; it cannot be negative"
    count = values.get("num_hidden_layers")
    types = values.get("layer_types")
    if types is not None and count is not None and (not isinstance(types, list) or len(types) != count):
        held = len(types) if isinstance(types, list) else "no list"
        yield f"`num_hidden_layers` ({count}) must be equal to the number of `layer_types` ({held})"
    layers = values.get("per_layer_config")
    if layers is not None:
        yield from _wrong_layers(layers, values)
    padding = values.get(PADDING)
    if padding is not None and not (
        isinstance(padding, list) and len(padding) == count and all(type(n) is int and n >= 0 for n in padding)
    ):
        yield f"{PADDING} must be a list of {count} whole numbers"


def _wrong_sizes(values: Mapping[str, Any], where: str) -> Iterator[str]:
    sizes = {key: values[key] for key in LARGEST if values.get(key) is not None}
    wrong = {key for key, size in sizes.items() if type(size) is not int or not 1 <= size <= LARGEST[key]}
    for key in sorted(wrong):
        yield f"{where}{key} is {sizes[key]!r:.40}; it must be a whole number from 1 to {LARGEST[key]:,}"
    heads, kv_heads = sizes.get("num_attention_heads"), sizes.get("num_key_value_heads")
    if heads and kv_heads and not wrong & {"num_attention_heads", "num_key_value_heads"} and heads % kv_heads:
        yield f"{where}num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})"


def _wrong_layers(layers: Any, values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with `per_layer_config`: layers have widths and modules that are gone, and nothing else."""
    count, types = values.get("num_hidden_layers"), values.get("layer_types") or []
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        yield "per_layer_config is no object of objects"
        return
    if type(count) is not int:
        yield "it has a per_layer_config, but no num_hidden_layers"
        return
    digits = len(str(count))  # transformers fills the numbers up to one length
    if strange := [key for key in layers if not (key.isdecimal() and len(key) <= digits and int(key) < count)]:
        yield f"per_layer_config has a layer '{strange[0]:.40}', but the model has layers 0 to {count - 1}"
    for key, layer in layers.items():
        if strange := [name for name in layer if name not in (*_LAYER_WIDTHS, "skip")]:
            yield f"per_layer_config changes '{strange[0]:.40}' of layer {key:.40}, which no layer may have of its own"
        skip = layer.get("skip", [])
        if not isinstance(skip, list) or any(module not in _MODULES for module in skip):
            yield f"per_layer_config skips {skip!r:.40} in layer {key:.40}; only {' and '.join(_MODULES)} can be gone"
        elif "attention" in skip and types[int(key) : int(key) + 1] == [LINEAR]:
            yield f"per_layer_config skips attention in layer {key:.40}, which has linear attention: that cannot be gone"
        whole = {name: values[name] for name in _LAYER_WIDTHS if type(values.get(name)) is int}
        yield from _wrong_sizes({**whole, **layer}, f"layer {key:.40}: ")


def _numbers(value: Any, key: str = "a value") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict):
        for name, held in value.items():
            yield from _numbers(held, str(name)[:40])
    elif isinstance(value, list):
        for held in value:
            yield from _numbers(held, key)


def reason(fault: BaseException) -> str:
    """What a library means: the cause where its first line only says which of its checks failed."""
    return first_line(fault.__cause__ or fault)[:300]
