"""A checkpoint as one model in memory: stock transformers where its layers are alike, else the modeling file it ships."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from darwinlm.models.heterogeneous import build_empty, fill, modeling
from darwinlm.models.source import ModelSource


def load_whole(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """The language model of a checkpoint, in evaluation mode.

    Args:
        source: the checkpoint.
        device: where it goes.
        dtype: what it computes in.
    """
    return _loaded(source, source.config, dtype).to(device).eval()


def load_beginning(source: ModelSource, count: int) -> Any:
    """The language model of a checkpoint's first `count` layers, on the CPU in the dtype of most weights; of what lies behind
    them nothing is read."""
    values, layers = source.config.to_dict(), source.config.num_hidden_layers
    for name in ("transformers_version", "architectures", "model_type"):
        values.pop(name, None)
    begun = {n: v[:count] if isinstance(v, list) and len(v) == layers else v for n, v in values.items()}
    if own := values.get("per_layer_config"):
        begun["per_layer_config"] = {str(int(i)): own[i] for i in own if int(i) < count}
    config = type(source.config)(**{**begun, "num_hidden_layers": count})
    told, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # it would tell of all that is left out
    logging.disable_progress_bar()
    try:
        return _loaded(source, config, source.dtype).eval()
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()


def _loaded(source: ModelSource, config: Any, dtype: torch.dtype) -> Any:
    ours = isinstance(config, modeling(source.family).DarwinLMConfig)
    if source.packed:
        make = modeling(source.family).DarwinLMForCausalLM if ours else AutoModelForCausalLM.from_config
        model = build_empty(make, config)
        names = [name for name in source.files if name in model.state_dict()]
        return fill(model, {name: tensor.to(dtype) for name, tensor in source.tensors(names).items()})
    loader: Any = modeling(source.family).DarwinLMForCausalLM if ours else AutoModelForCausalLM
    return loader.from_pretrained(source.folder, config=config, dtype=dtype, use_safetensors=True)
