"""vLLM's own decoder with layers of their own widths, or without their attention or MLP."""

# pyright: reportMissingImports=false

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import extract_layer_index


class Absent(nn.Module):
    """An attention or MLP that is gone: adds nothing, and has no pages in the KV cache."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


class AbsentNorm(nn.Module):
    """Its norm: only adds to the residual stream what the module before has left."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return hidden_states
        residual = residual + hidden_states
        return residual, residual


def layer(vllm_config: Any, prefix: str) -> nn.Module:
    """One decoder layer as its entry of `per_layer_config` says.

    Raises:
        ValueError: vLLM has no layer for this family here.
    """
    index = extract_layer_index(prefix)
    config = copy(vllm_config.model_config.hf_config.per_layer_config[index])
    skip = getattr(config, "skip", ())
    if "attention" in skip:  # built, and replaced below: the least that can be split
        config.num_attention_heads = config.num_key_value_heads = get_tensor_model_parallel_world_size()
    if "mlp" in skip:
        config.intermediate_size = get_tensor_model_parallel_world_size()
    made = _whole(config, index, vllm_config, prefix)
    if "attention" in skip:
        made.self_attn, made.input_layernorm = Absent(), AbsentNorm()
        del vllm_config.compilation_config.static_forward_context[f"{prefix}.self_attn.attn"]  # asks for pages
    if "mlp" in skip:
        made.mlp, made.post_attention_layernorm = Absent(), AbsentNorm()
    return made


def _whole(config: Any, index: int, vllm_config: Any, prefix: str) -> Any:
    if config.model_type in ("llama", "mistral"):
        return LlamaDecoderLayer(vllm_config, prefix, config)
    if config.model_type == "qwen2":
        config.qkv_bias = True
        return LlamaDecoderLayer(vllm_config, prefix, config)
    if config.model_type == "qwen3":
        return _qwen3(config, index, vllm_config, prefix)
    raise ValueError(
        f"DarwinLM's plugin has no layers of the family '{config.model_type}' for vLLM. Serve this checkpoint with "
        "--model-impl transformers --trust-remote-code."
    )


def _qwen3(config: Any, index: int, vllm_config: Any, prefix: str) -> Any:
    slides = bool(config.layer_types) and config.layer_types[index] == "sliding_attention"
    window, quantized = config.sliding_window if slides else None, vllm_config.quant_config
    made = Qwen3DecoderLayer(config, vllm_config.cache_config, quantized, prefix, per_layer_sliding_window=window)
    if config.attention_bias:  # vLLM's layer leaves out that of the output matrix
        bare = made.self_attn.o_proj
        made.self_attn.o_proj = RowParallelLinear(
            bare.input_size, bare.output_size, quant_config=quantized, prefix=bare.prefix
        )
    return made


class DarwinLMForCausalLM(LlamaForCausalLM):
    """The causal language model; layers alone differ between these families."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer)
