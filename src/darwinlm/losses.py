"""Token losses in float32, in chunks over tokens: all logits never exist at once.

Letters: N = tokens, H = hidden size, V = vocabulary, K = tokens that a shortened distribution tells apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint

from darwinlm.models.head import Head

CHUNK_VALUES = 1 << 26
"""Logits that exist at a time: 256 MiB in float32. Each chunk adds a gradient of the whole head, so few are better."""
CACHED_VALUES = 1 << 22
"""The same on a CPU, where what is read again should still be in its cache."""


def perplexity_of(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats; at most 1e304, beyond which there are no numbers."""
    return math.exp(min(nll, 700.0))


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens in a chunk."""
    return max(16, (CACHED_VALUES if device.type == "cpu" else CHUNK_VALUES) // vocabulary)


@torch.no_grad()
def distributions(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Next-token probabilities p (N, V) and sum p log p (N,) of final hidden states (N, H), in float32."""
    log_p = log_softmax(head.logits(hidden.to(head.weight)), dim=-1)
    p = log_p.exp()
    return p, torch.einsum("nv,nv->n", p, log_p)


@torch.no_grad()
def kl_of_tokens(p: Tensor, p_log_p: Tensor, hidden: Tensor, head: Head) -> Tensor:
    """(N,) KL(p || candidate) in nats, from `distributions` and the candidate's hidden states (N, H'); float64."""
    log_q = log_softmax(head.logits(hidden.to(head.weight)), dim=-1)
    return (p_log_p - torch.einsum("nv,nv->n", p, log_q)).double()


@torch.no_grad()
def token_kls(teacher: Tensor, student: Tensor, teacher_head: Head, student_head: Head) -> Tensor:
    """(N,) KL(teacher || student) between next-token distributions, in nats; float64, on the CPU.

    Args:
        teacher: (N, H) final hidden states of the dense model.
        student: (N, H') final hidden states of the candidate.
        teacher_head: of V tokens.
        student_head: of as many.
    """
    teacher_head, student_head = teacher_head.detached(), student_head.detached()
    step = chunk_tokens(teacher_head.vocabulary, teacher_head.device)
    parts = zip(teacher.split(step), student.split(step))
    return torch.cat([kl_of_tokens(*distributions(t, teacher_head), s, student_head).cpu() for t, s in parts])


@torch.no_grad()
def token_nlls(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """(N,) negative log-likelihoods of `targets` (N,) under heads of `hidden` (N, H), in nats; float64, on the CPU."""
    head = head.detached()
    step = chunk_tokens(head.vocabulary, head.device)
    logits = (head.logits(part.to(head.weight)) for part in hidden.split(step))
    parts = (cross_entropy(l, t.to(head.device), reduction="none") for l, t in zip(logits, targets.split(step)))
    return torch.cat([part.double().cpu() for part in parts])


def next_token_loss(hidden: Tensor, head: Head, tokens: Tensor) -> Tensor:
    """Mean cross entropy of the next tokens, differentiable; chunks of logits are made again in the backward pass.

    Args:
        hidden: (S, T, H) final hidden states.
        head: of the model.
        tokens: (S, T) ids; position t predicts t + 1.
    """
    flat, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    step = chunk_tokens(head.vocabulary, head.device)
    if targets.shape[0] <= step:
        return cross_entropy(head.logits(flat), targets)
    total = flat.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(flat.split(step), targets.split(step)):
        total = total + checkpoint(_summed_loss, part, head, wanted, use_reentrant=False)
    return total / targets.shape[0]


def _summed_loss(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    return cross_entropy(head.logits(hidden), targets, reduction="sum")


@dataclass(frozen=True)
class Shortened:
    """A teacher's K most likely next tokens; all others are one outcome."""

    log_p: Tensor
    """(N, K), float32, of the whole softened distribution."""
    tokens: Tensor
    """(N, K) ids."""


@torch.no_grad()
def shortened(hidden: Tensor, head: Head, top_k: int, temperature: float) -> Shortened:
    """The likeliest tokens of heads of `hidden` (N, H), softened by `temperature`."""
    parts: list[tuple[Tensor, Tensor]] = []
    for part in hidden.split(chunk_tokens(head.vocabulary, head.device)):
        log_p = log_softmax(head.logits(part.to(head.weight)) / temperature, dim=-1)
        parts.append(log_p.topk(top_k, dim=-1))
    return Shortened(torch.cat([values for values, _ in parts]), torch.cat([tokens for _, tokens in parts]))


def distillation_losses(
    hidden: Tensor, head: Head, targets: Tensor, teacher: tuple[Tensor, Head] | Shortened, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy, and mean KL(teacher || student) of softened distributions, in nats; differentiable.

    Of a shortened teacher it is the KL between distributions over its K tokens and "any other", a lower bound that is
    exact at K = V. Chunks of logits are made once for both losses, and again in the backward pass.

    Args:
        hidden: (N, H) final hidden states of the student.
        head: of the student.
        targets: (N,) next tokens; -100 where there is none, which leaves out the cross entropy alone.
        teacher: final hidden states (N, H') and head, or what was kept of its distributions.
        temperature: of both distributions of the KL.
    """
    short = isinstance(teacher, Shortened)
    sources, tail = ((teacher.log_p, teacher.tokens), ()) if short else ((teacher[0],), (teacher[1],))
    summed_kl_of: Callable[..., Tensor] = _kl_to_shortened if short else _kl_to_heads

    def summed(part: Tensor, head: Head, wanted: Tensor, *known: Tensor) -> Tensor:
        logits = head.logits(part)
        entropy = cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
        return torch.stack([entropy, summed_kl_of(logits / temperature, *known, *tail, temperature)])

    step, total = chunk_tokens(head.vocabulary, head.device), hidden.new_zeros(2, dtype=torch.float32)
    for part, wanted, *known in zip(*(tensor.split(step) for tensor in (hidden, targets, *sources))):
        total = total + checkpoint(summed, part, head, wanted, *known, use_reentrant=False)
    return total[0] / (targets != -100).sum(), total[1] / hidden.shape[0]


def _kl_to_heads(logits: Tensor, teacher: Tensor, teacher_head: Head, temperature: float) -> Tensor:
    with torch.no_grad():
        log_p = log_softmax(teacher_head.logits(teacher.to(teacher_head.weight)) / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_softmax(logits, dim=-1))).sum()


def _kl_to_shortened(logits: Tensor, log_p: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    total = logits.logsumexp(-1)
    inside = (log_p.exp() * (log_p - logits.gather(-1, tokens) + total[:, None])).sum()
    if tokens.shape[-1] == logits.shape[-1]:
        return inside
    other_q = logits.scatter(-1, tokens, float("-inf")).logsumexp(-1) - total
    other_p = (1 - log_p.double().exp().sum(-1)).clamp_min(0)
    return inside + (torch.xlogy(other_p, other_p) - other_p * other_q).sum().float()
