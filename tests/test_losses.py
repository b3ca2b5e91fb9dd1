"""Chunked losses against the naive ones of full logits, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from darwinlm import losses
from darwinlm.losses import (
    Shortened,
    chunk_tokens,
    distillation_losses,
    next_token_loss,
    shortened,
    token_kls,
    token_nlls,
)
from darwinlm.models.head import Head

VOCABULARY = 40


def test_a_perplexity_is_a_number_whatever_the_loss():
    assert losses.perplexity_of(math.log(20.0)) == pytest.approx(20.0)
    assert math.isfinite(losses.perplexity_of(1e6))


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
    assert token_kls(teacher, student, Head(teacher_head), Head(student_head)).mean() == pytest.approx(naive, rel=1e-5)


@pytest.mark.usefixtures("chunks")
def test_kl_of_a_model_with_itself_is_zero() -> None:
    hidden, head = random(50, 8), random(VOCABULARY, 8, seed=1)
    assert token_kls(hidden, hidden, Head(head), Head(head)).mean() == pytest.approx(0, abs=1e-7)


def test_kl_is_taken_in_float32_or_wider() -> None:
    """Logits are upcast before the product: equal bfloat16 tensors must have a KL of exactly what float64 says."""
    hidden, head = random(50, 8).bfloat16(), random(VOCABULARY, 8, seed=1).bfloat16()
    nudged = head + 0.02 * random(VOCABULARY, 8, seed=2).bfloat16()
    logits = [hidden.double() @ weights.double().T for weights in (head, nudged)]
    p, q = (values - values.logsumexp(-1, keepdim=True) for values in logits)
    naive = (p.exp() * (p - q)).sum(-1).mean().item()
    assert token_kls(hidden, hidden, Head(head), Head(nudged)).mean() == pytest.approx(naive, rel=1e-3)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("tokens", [1, 16, 50])
def test_nll_of_targets(tokens: int) -> None:
    hidden, head = random(tokens, 8), random(VOCABULARY, 8, seed=1)
    targets = torch.arange(tokens) * 7 % VOCABULARY
    naive = -log_probabilities(hidden, head)[torch.arange(tokens), targets].mean().item()
    assert token_nlls(hidden, Head(head), targets).mean() == pytest.approx(naive, rel=1e-5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("shape", [(1, 2), (1, 17), (3, 19)])
def test_next_token_loss_and_its_gradients(shape: tuple[int, int]) -> None:
    hidden, head = random(*shape, 8).requires_grad_(), random(VOCABULARY, 8, seed=1).requires_grad_()
    tokens = torch.arange(shape[0] * shape[1]).view(shape) * 7 % VOCABULARY
    loss = next_token_loss(hidden, Head(head), tokens)
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


def student_and_teacher(tokens: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and head of a student that learns and of a teacher of another width, and next tokens."""
    student = [random(tokens, 8).requires_grad_(), random(VOCABULARY, 8, seed=1).requires_grad_()]
    targets = torch.arange(tokens) * 7 % VOCABULARY
    targets[4::9] = -100
    return *student, random(tokens, 6, seed=2), random(VOCABULARY, 6, seed=3), targets


def assert_equal_with_gradients(ours: Tensor, naive: Tensor, learnt: tuple[Tensor, Tensor]) -> None:
    assert ours.item() == pytest.approx(naive.item(), rel=1e-5)
    for one, other in zip(*(torch.autograd.grad(loss, learnt, retain_graph=True) for loss in (ours, naive))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation_losses_and_their_gradients(temperature: float) -> None:
    hidden, head, teacher, teacher_head, targets = student_and_teacher()
    entropy, kl = distillation_losses(hidden, Head(head), targets, (teacher, Head(teacher_head)), temperature)
    p = log_probabilities(teacher / temperature, teacher_head)
    naive_kl = (p.exp() * (p - log_probabilities(hidden / temperature, head))).sum(-1).mean()
    known = targets != -100
    naive_entropy = -log_probabilities(hidden, head)[known].gather(-1, targets[known, None]).mean()
    assert_equal_with_gradients(kl, naive_kl, (hidden, head))
    assert_equal_with_gradients(entropy, naive_entropy, (hidden, head))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("top_k", [1, 5, VOCABULARY - 1])
def test_a_shortened_teacher_is_the_kl_over_its_tokens_and_any_other(top_k: int) -> None:
    hidden, head, teacher, teacher_head, targets = student_and_teacher()
    kept = shortened(teacher, Head(teacher_head), top_k, 2.0)
    _, kl = distillation_losses(hidden, Head(head), targets, kept, 2.0)
    p, q = (log_probabilities(h / 2, w).exp() for h, w in ((teacher, teacher_head), (hidden, head)))
    first = p.argsort(-1, descending=True)[:, :top_k]
    assert torch.equal(kept.tokens.sort(-1).values, first.sort(-1).values)
    merged = [torch.cat([d.gather(-1, first), 1 - d.gather(-1, first).sum(-1, keepdim=True)], -1) for d in (p, q)]
    naive = (merged[0] * (merged[0] / merged[1]).log()).sum(-1).mean()
    assert_equal_with_gradients(kl, naive, (hidden, head))


@pytest.mark.usefixtures("chunks")
def test_a_teacher_shortened_to_the_whole_vocabulary_is_the_teacher() -> None:
    hidden, head, teacher, teacher_head, targets = student_and_teacher()
    kept = shortened(teacher, Head(teacher_head), VOCABULARY, 1.0)
    assert kept.log_p.exp().sum(-1).sub(1).abs().max() < 1e-5
    _, exact = distillation_losses(hidden, Head(head), targets, (teacher, Head(teacher_head)))
    _, same = distillation_losses(hidden, Head(head), targets, kept)
    assert_equal_with_gradients(same, exact, (hidden, head))


@pytest.mark.usefixtures("chunks")
def test_logits_that_are_scaled_and_capped() -> None:
    hidden, weight, targets = random(50, 8), random(VOCABULARY, 8, seed=1), torch.arange(50) % VOCABULARY
    logits = 3.0 * torch.tanh(0.7 * (hidden.double() @ weight.double().T) / 3.0)
    naive = torch.nn.functional.cross_entropy(logits, targets).item()
    assert token_nlls(hidden, Head(weight, 0.7, 3.0), targets).mean() == pytest.approx(naive, rel=1e-5)


def test_what_is_left_out_of_a_shortened_teacher_may_be_nothing() -> None:
    """A teacher that is sure: the probability of any other token is 0, and so is its part of the loss."""
    hidden, head = random(3, 8).requires_grad_(), random(VOCABULARY, 8, seed=1)
    sure = Shortened(torch.zeros(3, 1), torch.tensor([[4], [5], [6]]))
    _, kl = distillation_losses(hidden, Head(head), torch.tensor([4, 5, 6]), sure)
    naive = -log_probabilities(hidden, head)[torch.arange(3), torch.tensor([4, 5, 6])].mean()
    assert kl.item() == pytest.approx(naive.item(), rel=1e-5)
    assert torch.autograd.grad(kl, hidden)[0].isfinite().all()
