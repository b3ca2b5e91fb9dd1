"""What transformers.Trainer and accelerate are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from darwinlm.config import TrainConfig
from darwinlm.recovery.batches import Rhythm
from darwinlm.runtime import ranks

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    train: TrainConfig,
    rhythm: Rhythm,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    layers: list[str],
    begins: bool,
) -> TrainingArguments:
    """Trainer's arguments; what concerns text, states, evaluation and logging is ours.

    Args:
        train: the settings.
        rhythm: how a step is shared out.
        folder: where Trainer may write.
        device: what computes.
        dtype: arithmetic of the forward pass; weights and moments are float32.
        layers: class names of the decoder layers, each of which FSDP wraps by itself.
        begins: from the first step, so that the held-out text is looked at before it.
    """
    fsdp: dict[str, Any] = {}
    if train.fsdp and ranks.world_size() > 1:
        fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": layers}}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=rhythm.steps,
        per_device_train_batch_size=rhythm.micro,
        gradient_accumulation_steps=rhythm.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        torch_compile=train.compile,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        report_to=train.report_to or "none",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        eval_on_start=begins,
        ignore_data_skip=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        log_level="error",
        **fsdp,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process, one device: more come through torchrun
    return arguments
