"""The predicted cost of a training against counted parameters and counted operations of stock models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.utils.flop_counter import FlopCounterMode

import pico
from darwinlm.config import Tokens, TrainConfig
from darwinlm.models.family import family_of
from darwinlm.models.shape import ModelShape
from darwinlm.recovery.plan import training_cost

TRAIN = TrainConfig(tokens=Tokens(1000), sequence_length=64, batch_tokens=Tokens(64), warmup_steps=0)


def shape_of(family: str) -> ModelShape:
    config = pico.config(family)
    return ModelShape.of(family_of(config.to_dict(), family), config)


def counted(model: Any, tokens: torch.Tensor, backward: bool) -> int:
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama_mha", "llama_gqa", "qwen3_tied"])
def test_operations_of_a_step(family):
    """The counter sees all pairs of attention, where half of them count, and logits once, where ours are made twice."""
    shape, model = shape_of(family), pico.random_model(family)
    found = counted(model, pico.random_tokens(1, 64), backward=True)
    masked = 3 * 64 * sum(2 * widths.heads * shape.head_dim * 64 for widths in shape.layers)
    logits = 64 * 2 * shape.vocabulary * shape.hidden
    ours = training_cost(shape, TRAIN, torch.float32).flops / training_cost(shape, TRAIN, torch.float32).optimizer_steps
    assert ours == pytest.approx(found - masked + logits, rel=0.02)


def test_a_teacher_adds_its_forward_pass():
    shape, model = shape_of("llama_gqa"), pico.random_model("llama_gqa")
    with_teacher, alone = (training_cost(shape, TRAIN, torch.float32, teacher=t).flops for t in (shape, None))
    found = counted(model, pico.random_tokens(1, 64), backward=False)
    masked = 64 * sum(2 * widths.heads * shape.head_dim * 64 for widths in shape.layers)
    assert (with_teacher - alone) / TRAIN.steps == pytest.approx(found - masked, rel=0.02)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_trained_parameters(family):
    shape, model = shape_of(family), pico.random_model(family)
    assert training_cost(shape, TRAIN, torch.float32).trained_parameters == shape.parameters
    inject_adapter_in_model(LoraConfig(r=3, target_modules="all-linear"), model)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert (
        training_cost(shape, replace(TRAIN, method="lora", lora_rank=3), torch.float32).trained_parameters == adapters
    )


def test_memory_falls_where_it_must():
    shape = shape_of("llama_mha")
    whole = training_cost(shape, TRAIN, torch.float32).memory_bytes
    assert whole > 16 * shape.parameters
    assert training_cost(shape, replace(TRAIN, method="lora", lora_rank=2), torch.float32).memory_bytes < whole
    assert training_cost(shape, replace(TRAIN, gradient_checkpointing=True), torch.float32).memory_bytes < whole
    assert training_cost(shape, TRAIN, torch.float32, devices=4).memory_bytes < whole
    alone = training_cost(shape, replace(TRAIN, fsdp=False), torch.float32, devices=4).memory_bytes
    assert alone == whole


def test_steps_are_rounded_up():
    assert training_cost(shape_of("llama_mha"), TRAIN, torch.float32).optimizer_steps == 16
