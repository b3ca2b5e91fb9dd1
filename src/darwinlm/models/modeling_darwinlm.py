"""A decoder of transformers whose layers differ in width, or lack their attention or MLP.

This file ships inside every checkpoint and needs transformers (>= 5.14) alone. Widths stand in the standard field
`per_layer_config`; everything else is the stock code of the family below.
"""

import importlib

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 14):
    raise ImportError(f"This checkpoint needs transformers >= 5.14, but {transformers.__version__} is installed.")

from huggingface_hub.dataclasses import strict

MODEL_TYPE, PREFIX = "llama", "Llama"  # written for each checkpoint; nothing else in this file depends on the family
WRITTEN_BY = "DarwinLM"

_configuration = importlib.import_module(f"transformers.models.{MODEL_TYPE}.configuration_{MODEL_TYPE}")
_modeling = importlib.import_module(f"transformers.models.{MODEL_TYPE}.modeling_{MODEL_TYPE}")
_Config = getattr(_configuration, f"{PREFIX}Config")
_Layer, _Norm, _Rotary, _Model, _CausalLM = (
    getattr(_modeling, PREFIX + name) for name in ("DecoderLayer", "RMSNorm", "RotaryEmbedding", "Model", "ForCausalLM")
)
_FLAG = "allow_global_per_layer_attribute_access"


_MODULE_OF = {"num_attention_heads": "attention", "num_key_value_heads": "attention", "intermediate_size": "mlp"}


def _is_narrower(layer, whole):
    kept = (name for name, module in _MODULE_OF.items() if module not in layer.get("skip", ()))
    return any(layer.get(name, whole[name]) != whole[name] for name in kept)


@strict
class DarwinLMConfig(_Config):
    """The family's configuration; `model_type` stays the family's, so stock code may take over one day."""

    def validate_architecture(self):
        """The stock check reads one global head count, which does not exist here."""

    def __post_init__(self, **kwargs):
        kwargs.pop(_FLAG, None)  # for stock code alone: here every width is read from its layer
        super().__post_init__(**kwargs)

    def to_dict(self):
        """With leave for stock code to read this configuration, as for a tokenizer, where it cannot load the weights:
        a module that is narrower than the whole model's does not fit. If all are whole or gone, it would fit."""
        values = super().to_dict()
        values.pop(_FLAG, None)
        if any(_is_narrower(layer, values) for layer in (values.get("per_layer_config") or {}).values()):
            values[_FLAG] = True
        return values


class AbsentNorm(nn.Module):
    """The norm of a module that is gone."""

    def forward(self, hidden_states):
        return hidden_states


class AbsentAttention(nn.Module):
    """An attention that is gone: adds nothing and keeps no keys and values."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx

    def forward(self, hidden_states, **kwargs):
        if False:  # vLLM loads a module as attention if its text calls the interface
            attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation)
            attention_interface(self, hidden_states, hidden_states, hidden_states, None)
        return torch.zeros_like(hidden_states), None


class AbsentMLP(nn.Module):
    """An MLP that is gone: adds nothing."""

    def forward(self, hidden_states):
        return torch.zeros_like(hidden_states)


def _skips(layer_config, module):
    return module in getattr(layer_config, "skip", ())


def _layer(config, index):
    layer_config = config.per_layer_config[index]
    layer = _Layer(layer_config, index)
    layer.self_attn.config = config  # not the layer's snapshot: set_attn_implementation() must reach every layer
    if _skips(layer_config, "attention"):
        layer.input_layernorm, layer.self_attn = AbsentNorm(), AbsentAttention(config, index)
    if _skips(layer_config, "mlp"):
        layer.post_attention_layernorm, layer.mlp = AbsentNorm(), AbsentMLP()
    return layer


class DarwinLMModel(_Model):
    """The family's decoder with layers of their own widths."""

    config_class = config = DarwinLMConfig
    _can_set_attn_implementation = classmethod(lambda cls: True)  # the stock check searches this file's text

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)  # not the stock constructor: it builds layers of one width
        layer_configs = config.per_layer_config
        skipped = [_skips(layer_config, "attention") for layer_config in layer_configs]
        if any(skipped) and not all(skipped):
            # No slot in the KV cache for layers that would leave it empty: get_seq_length() must not read one of those.
            config.kv_sharing_modes = ["reuse" if skip else None for skip in skipped]
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([_layer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = _Norm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = _Rotary(config=layer_configs[0])
        self.gradient_checkpointing = False
        self.has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.post_init()


class DarwinLMForCausalLM(_CausalLM):
    """The family's language model over `DarwinLMModel`."""

    config_class = config = DarwinLMConfig
    _can_set_attn_implementation = classmethod(lambda cls: True)

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        self.model = DarwinLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


DarwinLMConfig.register_for_auto_class()
DarwinLMModel.register_for_auto_class("AutoModel")
DarwinLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
