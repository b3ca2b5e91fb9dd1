"""Models of random weights and any widths, made to be timed: all of them are views of one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.export.huggingface import write_files
from darwinlm.export.words import copy_words
from darwinlm.models.heterogeneous import build_empty, fill, heterogeneous_config, modeling
from darwinlm.models.shape import LayerWidths
from darwinlm.models.sites import HEAD
from darwinlm.models.source import ModelSource
from darwinlm.runtime.seeds import torch_generator


class Probes:
    """Makes models of a family with layers of any widths up to those of the dense model.

    The same tensor of every probe is the beginning of one common tensor, so that many probes take the memory of one model;
    a probe that ran evicts the weights of the others from the caches, as the layers of a whole model do.

    Args:
        source: the dense model; only its configuration counts.
        device: where they compute.
        dtype: of their weights.
        seed: of the weights.
    """

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self._generator = torch_generator(seed, "probes", device=device)
        self._memory: dict[str, Tensor] = {}

    def model(self, widths: Sequence[LayerWidths]) -> Any:
        """A model of such layers; fewer than the dense model has are allowed."""
        config = self._config(widths)
        tied = config.tie_word_embeddings
        empty = build_empty(modeling(self.source.family).DarwinLMForCausalLM, config, self.device)
        shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
        return fill(
            empty, {name: self._part(name, shape) for name, shape in shapes.items() if not tied or name != HEAD}
        )

    def checkpoint(self, widths: Sequence[LayerWidths], folder: Path) -> Path:
        """The same as a checkpoint, with the words of the dense model, for engines that read one; returns its folder."""
        folder.mkdir()
        config = self._config(widths)
        own = (
            pair
            for pair in self.model(widths).state_dict().items()
            if not config.tie_word_embeddings or pair[0] != HEAD
        )
        write_files(folder, self.source.family, config, self.dtype, own)
        copy_words(self.source, folder)
        return folder

    def _config(self, widths: Sequence[LayerWidths]) -> Any:
        values = self.source.config.to_dict()
        values["num_hidden_layers"] = len(widths)
        if values.get("layer_types"):
            values["layer_types"] = values["layer_types"][: len(widths)]
        values["per_layer_config"] = None
        return heterogeneous_config(self.source.family, type(self.source.config)(**values), widths)

    def _part(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor of that shape at the beginning of what all probes share under its name."""
        size = math.prod(shape)
        held = self._memory.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=self.dtype, device=self.device).normal_(0, 0.02, generator=self._generator)
            self._memory[name] = held
        return held[:size].view(*shape)
