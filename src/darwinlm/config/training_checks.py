"""What is wrong with the settings of post-training by themselves."""

from __future__ import annotations

import math

from darwinlm.config.training import TrainConfig


def train_faults(train: TrainConfig) -> list[str]:
    """Every fault; that `tokens` is still 0 is none, since only `darwinlm train` needs them."""
    found: list[str] = []

    def check(holds: bool, message: str) -> None:
        if not holds:
            found.append(message)

    for name, least in (
        ("sequence_length", 2),
        ("batch_tokens", 2),
        ("micro_batch_sequences", 1),
        ("lora_rank", 1),
        ("lora_alpha", 1),
        ("epochs", 1),
        ("shuffle_blocks", 1),
        ("warmup_steps", 0),
        ("top_k", 0),
        ("weight_decay", 0),
        ("max_grad_norm", 0),
        ("hidden_weight", 0),
    ):
        value = getattr(train, name)
        check(value >= least and math.isfinite(value), f"train.{name} is {value}; it must be at least {least}.")
    for name in ("learning_rate", "temperature"):
        value = getattr(train, name)
        check(0 < value < math.inf, f"train.{name} is {value}; it must be positive.")
    check(
        0 <= train.distill_weight <= 1,
        f"train.distill_weight is {train.distill_weight}; it must lie between 0 (cross entropy alone) and 1 (KL alone).",
    )
    check(
        not train.teacher_logits or (train.teacher != "" and train.top_k > 0),
        "train.teacher_logits keeps the teacher's most likely tokens: it needs train.teacher and train.top_k, such as 64.",
    )
    check(
        not (train.teacher_logits and train.hidden_weight),
        "train.hidden_weight needs the teacher's hidden states, which train.teacher_logits does not keep. Leave one out.",
    )
    check(
        not train.hidden_weight or train.teacher != "",
        "train.hidden_weight compares with a teacher, but there is none: add train.teacher with the dense model.",
    )
    return found + (_step_faults(train) if not found else [])


def _step_faults(train: TrainConfig) -> list[str]:
    if train.batch_tokens % train.sequence_length:
        near = max(1, round(train.batch_tokens / train.sequence_length)) * train.sequence_length
        return [
            f"train.batch_tokens is {train.batch_tokens}, which are no whole sequences of train.sequence_length = "
            f"{train.sequence_length}. Set it to {near}."
        ]
    if train.tokens and train.warmup_steps >= train.steps:
        return [
            f"train.warmup_steps is {train.warmup_steps}, but {train.tokens:,} tokens are only {train.steps} steps of "
            f"train.batch_tokens = {train.batch_tokens:,}. Lower train.warmup_steps or train.batch_tokens, or give more tokens."
        ]
    return []
