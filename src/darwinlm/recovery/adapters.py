"""Low-rank adapters (LoRA, arXiv 2106.09685) from PEFT: put into a model, and merged into its weights at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.config import TrainConfig
from darwinlm.errors import RequestError
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole
from darwinlm.recovery.state import saved_weights
from darwinlm.runtime.seeds import torch_generator

ALL = "all-linear"


def check_adapters(source: ModelSource, train: TrainConfig) -> None:
    """Check that adapters can be put where they are asked for.

    Raises:
        RequestError: PEFT is missing, or no layer has such a matrix.
    """
    try:
        import peft  # noqa: F401
    except ImportError as fault:
        raise RequestError(
            "Adapters need PEFT: pip install 'darwinlm[lora]', or leave train.method at full."
        ) from fault
    layers = (source.layer(index, meta=True) for index in range(len(source.shape.layers)))
    mixture = source.family.site("mlp") if source.family.experts else None  # no matrices to PEFT
    names = {name for layer in layers for name in layer if "norm" not in name and not (mixture and mixture.holds(name))}
    matrices = {name.split(".")[-2] for name in names}
    if train.lora_targets != ALL and (unknown := [name for name in _targets(train) if name not in matrices]):
        raise RequestError(
            f"train.lora_targets names {', '.join(unknown)}, which no layer of '{source.name}' has. There are: {ALL}, "
            f"{', '.join(sorted(matrices))}."
        )


def _targets(train: TrainConfig) -> list[str]:
    return [name.strip() for name in train.lora_targets.split(",")]


def add_adapters(model: nn.Module, train: TrainConfig, seed: int) -> None:
    """Freeze a model and put adapters into it; they add nothing at first.

    Args:
        model: a causal language model, changed in place.
        train: rank, scale and targets count.
        seed: of the adapters' first values.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = model.get_decoder().layers.named_modules()  # type: ignore[operator]
    every = {name.rpartition(".")[2] for name, module in layers if isinstance(module, nn.Linear)}  # experts are none
    targets = sorted(every) if train.lora_targets == ALL else _targets(train)
    config = LoraConfig(r=train.lora_rank, lora_alpha=train.lora_alpha, target_modules=targets, lora_dropout=0.0)
    model.requires_grad_(False)
    torch.manual_seed(torch_generator(seed, "adapters").initial_seed())  # PEFT draws from the global state
    inject_adapter_in_model(config, model)


@torch.no_grad()
def merged_weights(source: ModelSource, state: Path, train: TrainConfig, seed: int) -> dict[str, Tensor]:
    """{name: tensor in float32} of a checkpoint with its trained adapters merged into it.

    Args:
        source: the checkpoint that the adapters were trained on.
        state: the training's last state.
        train: the settings.
        seed: of the training.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = load_whole(source, torch.device("cpu"), torch.float32)
    add_adapters(model, train, seed)
    model.load_state_dict(saved_weights(state), strict=False)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    whole = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in whole.items()}
