"""What a post-training takes, from shapes alone: arithmetic, memory, steps. Hours follow from a measured speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from darwinlm.config import TrainConfig
from darwinlm.cost import activation_bytes, forward_flops
from darwinlm.losses import chunk_tokens
from darwinlm.models.shape import ModelShape
from darwinlm.runtime.memory import Need


@dataclass(frozen=True)
class TrainingCost:
    """What a post-training takes."""

    flops: int
    """Floating-point operations in all, on all devices together; a multiplication and an addition count as two."""
    memory_bytes: int
    """Peak on each device, without what the runtime itself takes and without a live teacher's weights."""
    optimizer_steps: int
    trained_parameters: int


def training_cost(
    shape: ModelShape, train: TrainConfig, dtype: torch.dtype, *, devices: int = 1, teacher: ModelShape | None = None
) -> TrainingCost:
    """Predict a post-training.

    Weights, gradients and both moments are float32 (16 bytes a trained parameter), shared out by FSDP; in bfloat16
    every matrix has a copy in that arithmetic while it is at work.

    Args:
        shape: of the model that is trained.
        train: the settings.
        dtype: arithmetic of the forward pass.
        devices: ranks, one for each device.
        teacher: the dense model, where its distributions are computed alongside.
    """
    return TrainingCost(
        flops=train.steps * train.batch_tokens * _flops_a_token(shape, train, teacher),
        memory_bytes=_memory(shape, train, dtype, devices),
        optimizer_steps=train.steps,
        trained_parameters=_trained_parameters(shape, train),
    )


def training_need(
    shape: ModelShape, train: TrainConfig, dtype: torch.dtype, devices: int, teacher: ModelShape | None, on_host: bool
) -> Need:
    """Memory of a post-training on each rank, with its teacher; whole float32 weights pass through the host.

    Args:
        shape: of the model that is trained.
        train: the settings.
        dtype: arithmetic of the forward pass.
        devices: ranks.
        teacher: the dense model, where it computes alongside.
        on_host: whether the host itself computes.
    """
    held = teacher.parameters * dtype.itemsize + teacher.vocabulary * teacher.hidden * 4 if teacher else 0
    remedies = {
        "set train.gradient_checkpointing to true": not train.gradient_checkpointing,
        "lower train.micro_batch_sequences": train.micro_batch_sequences > 1,
        "shorten train.sequence_length": True,
        "train adapters (--lora)": train.method == "full",
        "keep the teacher's logits on disk (train.teacher_logits)": bool(held),
        "set train.fsdp to true": not train.fsdp and devices > 1,
        "start more ranks by torchrun": train.fsdp,
    }
    return Need(
        "The training",
        _memory(shape, train, dtype, devices) + held,
        0 if on_host else 4 * shape.parameters,
        tuple(text for text, helps in remedies.items() if helps),
    )


def _flops_a_token(shape: ModelShape, train: TrainConfig, teacher: ModelShape | None) -> int:
    """A forward pass, a backward pass of twice that (once with adapters, whose frozen matrices get no gradients), and what
    checkpointing computes again; the teacher's forward pass."""
    backward = 1 if train.method == "lora" else 2
    passes, length = 1 + backward + train.gradient_checkpointing, train.sequence_length
    head = 2 * shape.vocabulary * shape.hidden * (2 + backward)  # logits are made twice: see losses
    taught = forward_flops(teacher, length) if teacher else 0
    return forward_flops(shape, length, head=False) * passes + head + taught


def _memory(shape: ModelShape, train: TrainConfig, dtype: torch.dtype, devices: int) -> int:
    sharers = devices if train.fsdp else 1
    trained = _trained_parameters(shape, train)
    states = (4 * shape.parameters + 12 * trained) // sharers
    layer = max(shape.layer_parameters // max(1, len(shape.layers)), shape.vocabulary * shape.hidden)
    at_work = layer * 4 if sharers > 1 else 0
    copies = (shape.parameters if sharers == 1 else layer) * dtype.itemsize if dtype != torch.float32 else 0
    tokens = train.micro_batch_sequences * train.sequence_length
    activations = activation_bytes(shape, tokens, dtype.itemsize, train.gradient_checkpointing)
    logits = 4 * 4 * min(tokens, chunk_tokens(shape.vocabulary, torch.device("cuda"))) * shape.vocabulary
    return states + at_work + copies + activations + logits


def _trained_parameters(shape: ModelShape, train: TrainConfig) -> int:
    """All of them, or those of adapters on every matrix of the layers."""
    if train.method == "full":
        return shape.parameters
    held = (shape.stock.outlines(index, widths).values() for index, widths in enumerate(shape.layers))
    matrices = (size for sizes in held for size in sizes if len(size) == 2)
    return sum(map(sum, matrices)) * train.lora_rank
