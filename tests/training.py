"""Post-training of pico checkpoints: settings, texts, and plain training in stock transformers as the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, get_scheduler

LENGTH, BATCH, STEPS = 32, 8, 6
TRAIN: dict[str, Any] = {
    "tokens": STEPS * BATCH * LENGTH,
    "sequence_length": LENGTH,
    "batch_tokens": BATCH * LENGTH,
    "micro_batch_sequences": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "shuffle_blocks": 16,
}
BLOCKS: dict[str, Any] = {"sequence_length": LENGTH, "held_out": 5}


def write_text(folder: Path) -> Path:
    """Text enough for `TRAIN`."""
    path = folder / "text.txt"
    path.write_text("".join(f"{number} and {number * number}; " for number in range(400)))
    return path


def flags(**train: Any) -> list[str]:
    """The same settings as words of a command line."""
    words = {
        **{f"blocks.{k}": v for k, v in BLOCKS.items()},
        **{f"train.{k}": v for k, v in {**TRAIN, **train}.items()},
    }
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]


def history(output: Path) -> list[dict[str, Any]]:
    """The lines of a training's history without how fast it was."""
    lines = (output / "train/history.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "tokens_per_second"} for line in lines]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in history(output) if "loss" in line]


def plain_training(
    checkpoint: Path, batches: list[Tensor], learning_rate: float = TRAIN["learning_rate"]
) -> tuple[Any, list[float]]:
    """AdamW on cross entropy, whole batches at once: the model, and the loss before each step."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, TRAIN["warmup_steps"], len(batches))
    found = []
    for batch in batches:
        loss = cross_entropy(model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        found.append(loss.item())
    return model, found
