"""Chunked losses against the naive ones of full logits, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from darwinlm import losses
from darwinlm.losses import chunk_tokens, next_token_loss, token_kl, token_nll

VOCABULARY = 40


@pytest.fixture(params=[1, 1 << 24], ids=["chunked", "whole"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Force chunks of 16 tokens, or leave one chunk."""
    monkeypatch.setattr(losses, "CHUNK_VALUES", request.param)
    monkeypatch.setattr(losses, "CACHED_VALUES", request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_probabilities(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden.double() @ head.double().T
    return logits - logits.logsumexp(-1, keepdim=True)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("tokens", [1, 16, 50])
def test_kl_between_models_of_different_width(tokens: int) -> None:
    teacher, teacher_head = random(tokens, 8, seed=1), random(VOCABULARY, 8, seed=2)
    student, student_head = random(tokens, 6, seed=3), random(VOCABULARY, 6, seed=4)
    p, q = log_probabilities(teacher, teacher_head), log_probabilities(student, student_head)
    naive = (p.exp() * (p - q)).sum(-1).mean().item()
    assert token_kl(teacher, student, teacher_head, student_head) == pytest.approx(naive, rel=1e-5)


@pytest.mark.usefixtures("chunks")
def test_kl_of_a_model_with_itself_is_zero() -> None:
    hidden, head = random(50, 8), random(VOCABULARY, 8, seed=1)
    assert token_kl(hidden, hidden, head, head) == pytest.approx(0, abs=1e-7)


def test_kl_is_taken_in_float32_or_wider() -> None:
    """Logits are upcast before the product: equal bfloat16 tensors must have a KL of exactly what float64 says."""
    hidden, head = random(50, 8).bfloat16(), random(VOCABULARY, 8, seed=1).bfloat16()
    nudged = head + 0.02 * random(VOCABULARY, 8, seed=2).bfloat16()
    logits = [hidden.double() @ weights.double().T for weights in (head, nudged)]
    p, q = (values - values.logsumexp(-1, keepdim=True) for values in logits)
    naive = (p.exp() * (p - q)).sum(-1).mean().item()
    assert token_kl(hidden, hidden, head, nudged) == pytest.approx(naive, rel=1e-3)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("tokens", [1, 16, 50])
def test_nll_of_targets(tokens: int) -> None:
    hidden, head = random(tokens, 8), random(VOCABULARY, 8, seed=1)
    targets = torch.arange(tokens) * 7 % VOCABULARY
    naive = -log_probabilities(hidden, head)[torch.arange(tokens), targets].mean().item()
    assert token_nll(hidden, head, targets) == pytest.approx(naive, rel=1e-5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("shape", [(1, 2), (1, 17), (3, 19)])
def test_next_token_loss_and_its_gradients(shape: tuple[int, int]) -> None:
    hidden, head = random(*shape, 8).requires_grad_(), random(VOCABULARY, 8, seed=1).requires_grad_()
    tokens = torch.arange(shape[0] * shape[1]).view(shape) * 7 % VOCABULARY
    loss = next_token_loss(hidden, head, tokens)
    ours = torch.autograd.grad(loss, (hidden, head))
    naive = -log_probabilities(hidden, head)[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    truth = torch.autograd.grad(naive, (hidden, head))
    assert loss.item() == pytest.approx(naive.item(), rel=1e-5)
    for one, other in zip(ours, truth):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [32_000, 128_256, 152_064])
def test_logits_at_a_time_are_bounded(vocabulary: int) -> None:
    assert 16 <= chunk_tokens(vocabulary, torch.device("cuda")) <= losses.CHUNK_VALUES // vocabulary
    assert 16 <= chunk_tokens(vocabulary, torch.device("cpu")) <= losses.CACHED_VALUES // vocabulary
