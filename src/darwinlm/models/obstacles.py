"""What stands in the way of an unknown family: read off its configuration, and off the stock code where there is any."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Fields that only configurations of experts have."""
_SHARED = ("shared_expert_intermediate_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
"""Fields that only configurations with an expert for every token have."""
_ALSO = ", one of which every token takes (a shared expert)"
_PARTS = {
    "shared_expert": f"its layers have experts{_ALSO}",
    "experts": "its layers have experts",
    "router": "its layers have experts",
    "linear_attn": "some of its layers have linear attention",
    "mamba": "some of its layers have state-space modules",
    "conv": "some of its layers have convolutions",
}
_LLAMA = (*(f"self_attn.{part}_proj" for part in "qkvo"), "mlp.up_proj", "mlp.down_proj")


def obstacle(values: Mapping[str, Any], known: Collection[str]) -> str:
    """What is visibly different about a model, as the end of a sentence; empty where nothing is.

    Args:
        values: its config.json.
        known: families by `model_type`.
    """
    inner = values.get("text_config")
    if isinstance(inner, dict):
        kind = inner.get("model_type")
        there = " (which it knows: save that model alone)" if kind in known else ""
        return f"; it is multimodal, and its text model is of the family {kind!r:.60}{there}"
    if any(values.get(key) for key in EXPERTS):
        return "; its layers have experts" + (_ALSO if any(values.get(key) for key in _SHARED) else "")
    model_type = str(values.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        return "; its code lies in its own repository" if values.get("auto_map") else "; nor does transformers"
    return _of_layers(model_type)


def _of_layers(model_type: str) -> str:
    """By the modules of a small model without weights."""
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "; it is no causal language model"
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_class.from_dict({"num_hidden_layers": 4}))
    except Exception:  # whatever the family's constructor makes of it
        return ""
    names = [name for name, _ in model.named_modules()]
    for part, said in _PARTS.items():
        if any(part in name.split(".")[-1] for name in names):
            return f"; {said}"
    if not any(name.startswith("model.layers.0") for name in names):
        return "; its layers are not `model.layers`"
    if lacking := [name for name in _LLAMA if f"model.layers.0.{name}" not in names]:
        fused = [name.split(".")[-1] for name in names if "qkv" in name or "gate_up" in name]
        told = f"fused projections ({fused[0]})" if fused else f"no {lacking[0]}"
        return f"; its layers have {told}"
    return "; nobody has yet said which of its norms go with which module"
