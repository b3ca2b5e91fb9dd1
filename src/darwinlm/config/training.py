"""Settings of post-training; token counts as people write them, and other numbers with their constraints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Weight = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Tokens(int):
    """A number of tokens; `10B`, `1.5M` and `300K` are understood, too.

    Raises:
        ValueError: it is no whole number of tokens.
    """

    def __new__(cls, value: int | float | str) -> Tokens:
        found = re.fullmatch(r"(\d*\.?\d+(?:E\+?\d+)?)\s*([KMBT]?)", str(value).strip().replace("_", "").upper())
        if found is None or isinstance(value, bool):
            raise ValueError(f"'{value}' is no number of tokens; write 50000000, 50M or 10B")
        exact = Decimal(found[1]) * _UNITS[found[2]]
        if exact != (whole := int(exact)):
            raise ValueError(f"'{value}' is no whole number of tokens")
        return super().__new__(cls, whole)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        numbers = core_schema.union_schema([core_schema.int_schema(), core_schema.str_schema()])
        return core_schema.json_or_python_schema(numbers, core_schema.no_info_plain_validator_function(cls))


_NONE, _BATCH = Tokens(0), Tokens(262_144)


@dataclass(frozen=True)
class TrainConfig:
    """Post-training of a checkpoint: what on, how long, and towards which teacher."""

    tokens: Tokens = _NONE
    """Tokens that are trained on, rounded up to whole optimizer steps; 10B, 50M and 300K are understood. Fewer end a
    training that is under way."""
    sequence_length: Annotated[int, Ge(2)] = 4096
    """Tokens in a sequence; documents are joined by the end token and cut."""
    batch_tokens: Annotated[Tokens, Ge(2)] = _BATCH
    """Tokens in one optimizer step, over all ranks."""
    micro_batch_sequences: Count = 1
    """Sequences that a rank computes at a time; gradients are accumulated up to `batch_tokens`."""
    learning_rate: Positive = 1e-4
    """AdamW's peak."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Of the learning rate after the warm-up; the first two end at 0."""
    warmup_steps: Natural = 50
    """Optimizer steps in which the learning rate rises."""
    weight_decay: Weight = 0.0
    """AdamW's."""
    max_grad_norm: Weight = 1.0
    """Gradients of a larger norm are scaled down to it; 0 never."""
    method: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters that are merged into them at the end."""
    lora_rank: Count = 32
    """Rank of the adapters."""
    lora_alpha: Count = 64
    """Their scale is lora_alpha / lora_rank."""
    lora_targets: str = "all-linear"
    """Matrices that get an adapter: names with commas, or all-linear (every one but the head)."""
    teacher: str = ""
    """Path or hub id of the dense model; its distributions are learnt, and held-out KL is measured against it."""
    distill_weight: Share = 0.5
    """Share of the KL to the teacher in the loss, from 0 (cross entropy alone) to 1 (KL alone). Only with a teacher."""
    temperature: Positive = 1.0
    """Both distributions of the KL are softened by it; the KL counts its square times."""
    top_k: Natural = 0
    """Tokens of the teacher's distribution that are told apart, all others being one outcome; 0: the whole vocabulary."""
    hidden_weight: Weight = 0.0
    """Weight of 1 - cosine between the hidden states of student and teacher, averaged over the layers that are left."""
    teacher_logits: str = ""
    """Folder in which the teacher's top_k log-probabilities are computed once, and read by later trainings; empty: live."""
    epochs: Count = 1
    """Times that the data may be read; a training whose text has ended goes on with more."""
    shuffle_blocks: Count = 1024
    """Sequences of the stream that are shuffled together; 1 keeps its order."""
    eval_every_tokens: Tokens = _NONE
    """Tokens between scores on the held-out blocks; 0 ten times in all."""
    save_every_tokens: Tokens = _NONE
    """Tokens between saved states that a killed training goes on from; 0 ten times in all."""
    gradient_checkpointing: bool = False
    """Make activations again in the backward pass: a third slower, and several times smaller."""
    compile: bool = False
    """Compile the model with torch.compile."""
    fsdp: bool = True
    """Under torchrun, ranks share weights, gradients and moments (FSDP2); False: each holds all of them."""
    report_to: list[str] = field(default_factory=list)
    """Trackers that get the curves: wandb, tensorboard, trackio and others that transformers knows."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def batch_sequences(self) -> int:
        """Sequences in one optimizer step, over all ranks."""
        return self.batch_tokens // self.sequence_length
