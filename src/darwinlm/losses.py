"""Token losses in float32, in chunks over tokens: all logits never exist at once.

Letters: N = tokens, H = hidden size, V = vocabulary, K = tokens that a shortened distribution tells apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint

CHUNK_VALUES = 1 << 26
"""Logits that exist at a time: 256 MiB in float32. Each chunk adds a gradient of the whole head, so few are better."""
CACHED_VALUES = 1 << 22
"""The same on a CPU, where what is read again should still be in its cache."""


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens in a chunk."""
    return max(16, (CACHED_VALUES if device.type == "cpu" else CHUNK_VALUES) // vocabulary)


@torch.no_grad()
def distributions(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token probabilities p (N, V) and sum p log p (N,) of final hidden states (N, H), in float32."""
    log_p = log_softmax(hidden.to(head) @ head.T, dim=-1)
    p = log_p.exp()
    return p, torch.einsum("nv,nv->n", p, log_p)


@torch.no_grad()
def kl_of_tokens(p: Tensor, p_log_p: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
    """(N,) KL(p || candidate) in nats, from `distributions` and the candidate's hidden states (N, H'); float64."""
    log_q = log_softmax(hidden.to(head) @ head.T, dim=-1)
    return (p_log_p - torch.einsum("nv,nv->n", p, log_q)).double()


@torch.no_grad()
def token_kl(teacher: Tensor, student: Tensor, teacher_head: Tensor, student_head: Tensor) -> float:
    """Mean over tokens of KL(teacher || student) between next-token distributions, in nats.

    Args:
        teacher: (N, H) final hidden states of the dense model.
        student: (N, H') final hidden states of the candidate.
        teacher_head: (V, H).
        student_head: (V, H').
    """
    teacher_head, student_head = teacher_head.float(), student_head.float()
    step = chunk_tokens(teacher_head.shape[0], teacher_head.device)
    parts = zip(teacher.split(step), student.split(step))
    sums = (kl_of_tokens(*distributions(t, teacher_head), s, student_head).sum().item() for t, s in parts)
    return sum(sums) / teacher.shape[0]


@torch.no_grad()
def token_nll(hidden: Tensor, head: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood of `targets` (N,) under heads of `hidden` (N, H), in nats."""
    total = torch.zeros((), dtype=torch.float64)
    head = head.float()
    step = chunk_tokens(head.shape[0], head.device)
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
    step = chunk_tokens(head.shape[0], head.device)
    if targets.shape[0] <= step:
        return cross_entropy((flat @ head.T).float(), targets)
    total = flat.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(flat.split(step), targets.split(step)):
        total = total + checkpoint(_summed_loss, part, head, wanted, use_reentrant=False)
    return total / targets.shape[0]


def _summed_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy((hidden @ head.T).float(), targets, reduction="sum")


@dataclass(frozen=True)
class Shortened:
    """A teacher's K most likely next tokens; all others are one outcome."""

    log_p: Tensor
    """(N, K), float32, of the whole softened distribution."""
    tokens: Tensor
    """(N, K) ids."""


@torch.no_grad()
def shortened(hidden: Tensor, head: Tensor, top_k: int, temperature: float) -> Shortened:
    """The likeliest tokens of heads of `hidden` (N, H), softened by `temperature`."""
    parts: list[tuple[Tensor, Tensor]] = []
    for part in hidden.split(chunk_tokens(head.shape[0], head.device)):
        log_p = log_softmax((part.to(head) @ head.T).float() / temperature, dim=-1)
        parts.append(log_p.topk(top_k, dim=-1))
    return Shortened(torch.cat([values for values, _ in parts]), torch.cat([tokens for _, tokens in parts]))


def distillation_losses(
    hidden: Tensor, head: Tensor, targets: Tensor, teacher: tuple[Tensor, Tensor] | Shortened, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy, and mean KL(teacher || student) of softened distributions, in nats; differentiable.

    Of a shortened teacher it is the KL between distributions over its K tokens and "any other", a lower bound that is
    exact at K = V. Chunks of logits are made once for both losses, and again in the backward pass.

    Args:
        hidden: (N, H) final hidden states of the student.
        head: (V, H) of the student.
        targets: (N,) next tokens; -100 where there is none, which leaves out the cross entropy alone.
        teacher: final hidden states (N, H') and head (V, H'), or what was kept of its distributions.
        temperature: of both distributions of the KL.
    """
    short = isinstance(teacher, Shortened)
    sources, tail = ((teacher.log_p, teacher.tokens), ()) if short else ((teacher[0],), (teacher[1],))
    summed_kl_of: Callable[..., Tensor] = _kl_to_shortened if short else _kl_to_heads

    def summed(part: Tensor, head: Tensor, wanted: Tensor, *known: Tensor) -> Tensor:
        logits = (part @ head.T).float()
        entropy = cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
        return torch.stack([entropy, summed_kl_of(logits / temperature, *known, *tail, temperature)])

    step, total = chunk_tokens(head.shape[0], head.device), hidden.new_zeros(2, dtype=torch.float32)
    for part, wanted, *known in zip(*(tensor.split(step) for tensor in (hidden, targets, *sources))):
        total = total + checkpoint(summed, part, head, wanted, *known, use_reentrant=False)
    return total[0] / (targets != -100).sum(), total[1] / hidden.shape[0]


def _kl_to_heads(logits: Tensor, teacher: Tensor, teacher_head: Tensor, temperature: float) -> Tensor:
    with torch.no_grad():
        log_p = log_softmax((teacher.to(teacher_head) @ teacher_head.T).float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_softmax(logits, dim=-1))).sum()


def _kl_to_shortened(logits: Tensor, log_p: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    total = logits.logsumexp(-1)
    inside = (log_p.exp() * (log_p - logits.gather(-1, tokens) + total[:, None])).sum()
    if tokens.shape[-1] == logits.shape[-1]:
        return inside
    other_q = logits.scatter(-1, tokens, float("-inf")).logsumexp(-1) - total
    other_p = (1 - log_p.double().exp().sum(-1)).clamp_min(0)
    return inside + (torch.xlogy(other_p, other_p) - other_p * other_q).sum().float()
