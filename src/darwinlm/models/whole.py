"""A checkpoint as one model in memory: stock transformers where its layers are alike, else the modeling file it ships."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from darwinlm.models.heterogeneous import modeling
from darwinlm.models.source import ModelSource


def load_whole(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """The language model of a checkpoint, in evaluation mode.

    Args:
        source: the checkpoint.
        device: where it goes.
        dtype: what it computes in.
    """
    ours = isinstance(source.config, modeling(source.family).DarwinLMConfig)
    loader: Any = modeling(source.family).DarwinLMForCausalLM if ours else AutoModelForCausalLM
    model = loader.from_pretrained(source.folder, config=source.config, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()
