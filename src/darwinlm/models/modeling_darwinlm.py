"""A decoder of transformers whose layers differ in width, or lack their attention or MLP.

This file ships inside every checkpoint and needs transformers (>= 5.14) alone. Widths stand in the standard field
`per_layer_config`; everything else is the stock code of the family below.
"""

import contextlib
import importlib

import torch
import transformers
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 14):
    raise ImportError(f"This checkpoint needs transformers >= 5.14, but {transformers.__version__} is installed.")

from huggingface_hub.dataclasses import strict

FAMILY = {}  # written for each checkpoint; nothing else in this file depends on the family
WRITTEN_BY = "DarwinLM"

_PACKAGE = f"transformers.models.{FAMILY['package']}"
_Config = getattr(importlib.import_module(f"{_PACKAGE}.configuration_{FAMILY['package']}"), FAMILY["config"])
_modeling = importlib.import_module(f"{_PACKAGE}.modeling_{FAMILY['package']}")
_Layer, _Model, _CausalLM = (getattr(_modeling, FAMILY[name]) for name in ("layer", "model", "causal"))
_FLAG = "allow_global_per_layer_attribute_access"


def _is_narrower(layer, whole):
    kept = (name for name, module in FAMILY["widths"].items() if module not in layer.get("skip", ()))
    return any(layer.get(name, whole[name]) != whole[name] for name in kept)


@strict
class DarwinLMConfig(_Config):
    """The family's configuration; `model_type` stays the family's, so stock code may take over one day."""

    def validate_architecture(self):
        """The stock check reads one global head count, which does not exist here."""

    def validate_rope(self):
        """vLLM calls it by itself."""
        with _whole(self):
            super().validate_rope()

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


@contextlib.contextmanager
def _whole(config):
    """Stock code that is called here reads the widths of the whole model, which are in no layer's way."""
    layers = config.__dict__.pop("_heterogeneity_spec", None)
    try:
        yield
    finally:
        if layers is not None:
            config._heterogeneity_spec = layers


def _validate(self, _stock_checks=DarwinLMConfig.validate):
    with _whole(self):
        _stock_checks(self)


DarwinLMConfig.validate = _validate


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


class _LayerConfig:
    """The configuration of one layer, but for how the model runs: set_attn_implementation() and
    set_experts_implementation() must reach every layer."""

    def __init__(self, whole, layer):
        self.__dict__.update(whole=whole, layer=layer)

    def __getattr__(self, name):
        if name.startswith("__"):  # asked for by copies that are not filled yet
            raise AttributeError(name)
        return getattr(self.__dict__["whole" if name.startswith(("_attn", "_experts")) else "layer"], name)


def _layer_configs(config):
    return config.per_layer_config or [config] * config.num_hidden_layers  # None of equal layers in older transformers


def _skips(layer_config, module):
    return module in getattr(layer_config, "skip", ())


def _layer(config, index, layer_config=None):
    """Layer `index`; what it has of its own is in `layer_config`, by default that of the model's configuration."""
    layer_config = layer_config or _layer_configs(config)[index]
    layer = _Layer(layer_config, index)
    for kind, (module, _, norms) in FAMILY["modules"].items():
        if _skips(layer_config, kind):
            layer.set_submodule(module, AbsentAttention(config, index) if kind == "attention" else AbsentMLP())
            for norm in norms:
                layer.set_submodule(norm, AbsentNorm())
    if all(_skips(layer_config, kind) for kind in FAMILY["modules"]):
        for norm in FAMILY["shared_norms"]:
            layer.set_submodule(norm, AbsentNorm())
    module, output, _ = FAMILY["modules"]["attention"]
    if not _skips(layer_config, "attention") and hasattr(layer, module):  # else linear attention is in its place
        attention, matrix = layer.get_submodule(module), layer.get_submodule(output)
        columns = layer_config.num_attention_heads * attention.head_dim
        if matrix.in_features != columns:  # the family takes all heads for as wide as the model
            layer.set_submodule(output, nn.Linear(columns, matrix.out_features, bias=matrix.bias is not None))
    for part in layer.modules():
        if getattr(part, "config", None) is layer_config:
            part.config = _LayerConfig(config, layer_config)
    return layer


def _stock(self, stock_class, config):
    """The stock constructor, told that there are no layers: embeddings, norms, rotary and multipliers as it says."""
    count, config.num_hidden_layers = config.num_hidden_layers, 0
    try:
        with _whole(config):
            stock_class.__init__(self, config)
    finally:
        config.num_hidden_layers = count


class DarwinLMModel(_Model):
    """The family's decoder with layers of their own widths."""

    config_class = config = DarwinLMConfig
    _can_set_attn_implementation = classmethod(lambda cls: True)  # the stock check searches this file's text
    _can_set_experts_implementation = classmethod(lambda cls: _Model._can_set_experts_implementation())
    is_custom_code = classmethod(lambda cls: False)  # checkpoints hold experts by the family's names: to be converted

    def __init__(self, config):
        skipped = [_skips(layer_config, "attention") for layer_config in _layer_configs(config)]
        types = getattr(config, "layer_types", None) or [""] * len(skipped)
        if any(skipped) and not all(skip for skip, kind in zip(skipped, types) if kind != "linear_attention"):
            # No slot in the KV cache for layers that would leave it empty: get_seq_length() must not read one of those.
            config.kv_sharing_modes = ["reuse" if skip else None for skip in skipped]
        _stock(self, _Model, config)
        if config.num_hidden_layers:
            self.rotary_emb.config = _layer_configs(config)[0]  # some kinds read it again for longer texts
        self.layers = nn.ModuleList([_layer(config, index) for index in range(config.num_hidden_layers)])
        self.post_init()


class DarwinLMForCausalLM(_CausalLM):
    """The family's language model over `DarwinLMModel`."""

    config_class = config = DarwinLMConfig
    _can_set_attn_implementation = classmethod(lambda cls: True)
    _can_set_experts_implementation = classmethod(lambda cls: _Model._can_set_experts_implementation())
    is_custom_code = classmethod(lambda cls: False)

    def __init__(self, config):
        _stock(self, _CausalLM, config)
        self.model = DarwinLMModel(config)
        self.post_init()


DarwinLMConfig.register_for_auto_class()
DarwinLMModel.register_for_auto_class("AutoModel")
DarwinLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
