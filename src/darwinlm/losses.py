"""Token losses in float32, in chunks over tokens: all logits never exist at once.

Letters: N = tokens, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint

CHUNK_VALUES = 1 << 24
"""Logits that exist at a time: 64 MiB in float32."""


def chunk_tokens(vocabulary: int) -> int:
    """Tokens in a chunk."""
    return max(16, CHUNK_VALUES // vocabulary)


@torch.no_grad()
def token_kl(teacher: Tensor, student: Tensor, teacher_head: Tensor, student_head: Tensor) -> float:
    """Mean over tokens of KL(teacher || student) between next-token distributions, in nats.

    Args:
        teacher: (N, H) final hidden states of the dense model.
        student: (N, H') final hidden states of the candidate.
        teacher_head: (V, H).
        student_head: (V, H').
    """
    total = torch.zeros((), dtype=torch.float64)
    teacher_head, student_head = teacher_head.float(), student_head.float()
    step = chunk_tokens(teacher_head.shape[0])
    for ours, theirs in zip(teacher.split(step), student.split(step)):
        log_p = log_softmax(ours.to(teacher_head) @ teacher_head.T, dim=-1)
        log_q = log_softmax(theirs.to(student_head) @ student_head.T, dim=-1)
        total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum().cpu()
    return (total / teacher.shape[0]).item()


@torch.no_grad()
def token_nll(hidden: Tensor, head: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood of `targets` (N,) under heads of `hidden` (N, H), in nats."""
    total = torch.zeros((), dtype=torch.float64)
    head = head.float()
    step = chunk_tokens(head.shape[0])
    for part, wanted in zip(hidden.split(step), targets.split(step)):
        logits = part.to(head) @ head.T
        total += cross_entropy(logits, wanted.to(head.device), reduction="none").double().sum().cpu()
    return (total / targets.shape[0]).item()


def next_token_loss(hidden: Tensor, head: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy of the next tokens, differentiable; chunks of logits are made again in the backward pass.

    Args:
        hidden: (S, T, H) final hidden states.
        head: (V, H).
        tokens: (S, T) ids; position t predicts t + 1.
    """
    flat, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    step = chunk_tokens(head.shape[0])
    if targets.shape[0] <= step:
        return cross_entropy((flat @ head.T).float(), targets)
    total = flat.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(flat.split(step), targets.split(step)):
        total = total + checkpoint(_summed_loss, part, head, wanted, use_reentrant=False)
    return total / targets.shape[0]


def _summed_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy((hidden @ head.T).float(), targets, reduction="sum")
