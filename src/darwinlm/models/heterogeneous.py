"""The shipped modeling file, written for one family and loaded here: searches run the code that users will run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm import __version__
from darwinlm.models.family import Family
from darwinlm.models.shape import PADDING, LayerWidths

MODELING_FILE = Path(__file__).parent / "modeling_darwinlm.py"
_FAMILY_LINE = 'MODEL_TYPE, PREFIX = "llama", "Llama"'
_VERSION_LINE = 'WRITTEN_BY = "DarwinLM"'


def modeling_source(family: Family) -> str:
    """The text of the modeling file for one family."""
    source = MODELING_FILE.read_text(encoding="utf-8")
    for line, written in (
        (_FAMILY_LINE, f'MODEL_TYPE, PREFIX = "{family.model_type}", "{family.prefix}"'),
        (_VERSION_LINE, f'WRITTEN_BY = "DarwinLM {__version__}"'),
    ):
        if source.count(line) != 1:
            raise RuntimeError(f"{MODELING_FILE} must hold this line exactly once: {line}")
        source = source.replace(line, written)
    return source


@functools.cache
def modeling(family: Family) -> ModuleType:
    """The modeling file of one family as a module."""
    module = ModuleType(f"darwinlm.models.modeling_darwinlm_{family.model_type}")
    module.__file__ = str(MODELING_FILE)
    sys.modules[module.__name__] = module  # decorators look classes' modules up by name
    exec(compile(modeling_source(family), str(MODELING_FILE), "exec"), module.__dict__)
    return module


def heterogeneous_config(family: Family, dense_config: Any, widths: Sequence[LayerWidths]) -> Any:
    """A configuration of `dense_config`'s model with layers of the given widths.

    The fields of the whole model keep the widths from before any pruning, also where `dense_config` is pruned already.
    """
    values = dense_config.to_dict()
    for key in ("architectures", "auto_map", "kv_sharing_modes", "transformers_version", "_name_or_path", PADDING):
        values.pop(key, None)
    values["head_dim"] = (
        getattr(dense_config, "head_dim", None) or dense_config.hidden_size // dense_config.num_attention_heads
    )
    values["per_layer_config"] = {str(i): _overrides(layer, values) for i, layer in enumerate(widths)}
    if any(layer.padding for layer in widths):
        values[PADDING] = [layer.padding for layer in widths]
    config = modeling(family).DarwinLMConfig(**values)
    config._attn_implementation = "sdpa"
    return config


def one_layer(
    family: Family, dense_config: Any, widths: LayerWidths, index: int, tensors: dict[str, Tensor], device: torch.device
) -> nn.Module:
    """Layer `index` of a model as a decoder of its own, without embedding and final norm.

    Args:
        family: of the model.
        dense_config: of the model.
        widths: of this layer.
        index: its place: some families tell layers apart by it.
        tensors: its weights by their names within the layer; they become parameters without a copy.
        device: where its computed buffers lie.
    """
    values = dense_config.to_dict()
    values["num_hidden_layers"] = 1
    if values.get("layer_types"):
        values["layer_types"] = [values["layer_types"][index]]
    values["per_layer_config"] = None
    config = heterogeneous_config(family, type(dense_config)(**values), [widths])
    block = build_empty(modeling(family).DarwinLMModel, config, device)
    block.norm, block.embed_tokens = nn.Identity(), nn.Identity()
    return fill(block, {f"layers.0.{name}": tensor for name, tensor in tensors.items()})


def final_norm(family: Family, dense_config: Any, weight: Tensor) -> nn.Module:
    """The norm between the last layer and the head, with this weight."""
    norm = modeling(family)._Norm(dense_config.hidden_size, eps=dense_config.rms_norm_eps)
    norm.weight = nn.Parameter(weight)
    return norm.eval()


def _overrides(widths: LayerWidths, whole: dict[str, Any]) -> dict[str, Any]:
    """One layer's entry of `per_layer_config`. Skipped modules still override a width, with one that is not the whole
    model's, so that stock code, which does not know `skip`, refuses the checkpoint instead of filling the layer with
    random weights. It is not the head count: Llama's stock configuration reads that one, which tokenizers need."""
    skip = [name for name, width in (("attention", widths.heads), ("mlp", widths.intermediate)) if width == 0]
    heads = whole["num_attention_heads"]
    values: dict[str, Any] = {
        "num_attention_heads": widths.heads or max(heads, 2),
        "num_key_value_heads": widths.kv_heads or (1 if whole["num_key_value_heads"] > 1 else max(heads, 2)),
        "intermediate_size": widths.intermediate or (1 if whole["intermediate_size"] > 1 else 2),
    }
    return {**values, "skip": skip} if skip else values


def build_empty(model_class: type[nn.Module], config: Any, device: torch.device | str = "cpu") -> nn.Module:
    """A model without weights (on the meta device) but with its computed buffers on `device`."""
    with torch.device("meta"):
        model = model_class(config)
    decoder: Any = getattr(model, "model", model)
    decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.rotary_emb.config).to(device)
    return model


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Give an empty model its weights, without a copy; each tensor becomes a parameter as it is.

    Tied weights may be left out. Any other missing or surplus name is an error.
    """
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if getattr(model, "lm_head", None) is not None and "lm_head.weight" in missing:
        model.tie_weights()  # type: ignore[operator]
        missing.remove("lm_head.weight")
    if missing or unexpected:
        raise RuntimeError(f"weights do not fit the model: missing {missing}, unexpected {unexpected}")
    return model.eval()
