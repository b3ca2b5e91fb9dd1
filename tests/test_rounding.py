"""Stochastic rounding against its odds, and AdamW on bfloat16 weights against torch's own on float32 ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darwinlm.search import rounding
from darwinlm.search.rounding import RoundedAdamW, round_stochastically

DRAWS = 100_000
RATE, STEPS = 1e-5, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounded(values: Tensor, seed: int = 0) -> Tensor:
    target = torch.empty_like(values, dtype=torch.bfloat16)
    round_stochastically(target, values, generator(seed))
    return target


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers below and above a float32 one that is none: 8 bits of significand, exponent from -126."""
    _, exponent = math.frexp(value)
    step = math.ldexp(1.0, max(exponent, -125) - 8)
    return math.floor(value / step) * step, math.ceil(value / step) * step


@pytest.mark.parametrize("value", [1.003, -1.003, 0.0201, -0.0201, 255.7, 1.9999, 3.1e-30, -2.7e-38, 1e-40, 1e30])
def test_the_mean_of_many_draws_is_the_value(value: float) -> None:
    """Each is one of the two neighbours, the nearer one as often as its nearness says; 5 standard errors."""
    values = torch.full((DRAWS,), value)
    exact = values[0].double().item()  # as float32 holds it
    low, high = neighbours(exact)
    drawn = rounded(values).double()
    assert set(drawn.tolist()) <= {low, high}
    odds = (exact - low) / (high - low)
    spread = (high - low) * math.sqrt(odds * (1 - odds) / DRAWS)
    assert abs(drawn.mean().item() - exact) <= 5 * spread


def test_numbers_that_bfloat16_holds_stay() -> None:
    exact = torch.randn(1000, generator=generator()).bfloat16()
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, 2.0**-133, torch.finfo(torch.bfloat16).max])
    for values in (exact.float(), special):
        for seed in range(10):
            assert torch.equal(rounded(values, seed).float(), values)
    assert math.copysign(1.0, rounded(torch.tensor([-0.0])).item()) == -1.0
    assert rounded(torch.tensor([math.nan, -math.nan])).isnan().all()


def test_neither_strides_nor_the_values_are_touched() -> None:
    values = torch.randn(7, 5, generator=generator())
    target = torch.empty(5, 7, dtype=torch.bfloat16).T
    before = values.clone()
    round_stochastically(target, values.T.contiguous().T, generator(3))
    assert torch.equal(target, rounded(values, 3))
    assert torch.equal(values, before)


def gradients(shape: tuple[int, ...] = (64, 64), steps: int = STEPS) -> Iterator[Tensor]:
    """One sequence: a lasting direction under noise, in bfloat16."""
    source = generator(1)
    lasting = torch.randn(shape, generator=source)
    for _ in range(steps):
        yield (lasting + torch.randn(shape, generator=source)).bfloat16()


def beginning(shape: tuple[int, ...] = (64, 64)) -> Tensor:
    return (0.02 * torch.randn(shape, generator=generator(2))).bfloat16()


def moved_by_torch(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights and state after torch's AdamW on weights of a dtype."""
    weight = nn.Parameter(beginning().to(dtype))
    optimizer = torch.optim.AdamW([weight], lr=RATE, weight_decay=0.0)
    for gradient in gradients():
        weight.grad = gradient.to(dtype)
        optimizer.step()
    return weight.detach().double() - beginning().double(), optimizer.state[weight]


def moved_by_us(seed: int = 0, **options: Any) -> tuple[Tensor, RoundedAdamW]:
    weight = nn.Parameter(beginning(**options))
    optimizer = RoundedAdamW([weight], RATE, generator(seed))
    for gradient in gradients(**options):
        (weight * gradient).sum().backward()
        assert weight.grad is None  # freed as soon as it is used
    return weight.detach().double() - beginning(**options).double(), optimizer


def share(moved: Tensor, truth: Tensor) -> float:
    """How far along the true move the other one went."""
    return ((moved * truth).sum() / truth.square().sum()).item()


def test_updates_below_a_bfloat16_step_are_kept_on_average() -> None:
    truth, _ = moved_by_torch(torch.float32)
    nearest, _ = moved_by_torch(torch.bfloat16)
    ours, _ = moved_by_us()
    assert share(ours, truth) == pytest.approx(1, abs=0.04)
    assert share(nearest, truth) < 0.3
    large = beginning().abs() > 0.01  # where every single update is below half a step
    assert share(ours[large], truth[large]) == pytest.approx(1, abs=0.04)
    assert share(nearest[large], truth[large]) < 0.02


def test_moments_are_those_of_float32_on_average() -> None:
    _, truth = moved_by_torch(torch.float32)
    _, optimizer = moved_by_us()
    ((first, second),) = optimizer.moments.values()
    assert first.dtype == second.dtype == torch.bfloat16
    assert share(first.double(), truth["exp_avg"].double()) == pytest.approx(1, abs=0.01)
    assert second.double().sum().item() == pytest.approx(truth["exp_avg_sq"].double().sum().item(), rel=0.01)
    assert torch.allclose(first.float(), truth["exp_avg"], rtol=0.05, atol=0.02)
    assert torch.allclose(second.float(), truth["exp_avg_sq"], rtol=0.1, atol=1e-5)


def test_the_second_moment_does_not_stand_still() -> None:
    """After many steps a step moves it by a thousandth, less than half of what bfloat16 resolves."""
    weight, truth = nn.Parameter(beginning((32, 32))), torch.zeros(32, 32, dtype=torch.float64)
    nearest = truth.bfloat16()
    optimizer = RoundedAdamW([weight], RATE, generator())
    for gradient in map(torch.sign, gradients((32, 32), 1000)):
        (weight * gradient).sum().backward()
        truth.lerp_(gradient.double().square(), 0.001)
        nearest = nearest.float().lerp(gradient.float().square(), 0.001).bfloat16()
    ours = optimizer.moments[weight][1].double()
    assert ours.sum().item() == pytest.approx(truth.sum().item(), rel=0.02)
    assert nearest.double().sum().item() < 0.8 * truth.sum().item()


def test_without_rounding_it_is_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic alone: where weights and moments are wide enough to lose nothing, the same numbers as torch's."""
    monkeypatch.setattr(rounding, "round_stochastically", lambda target, values, _: target.copy_(values))
    weight = nn.Parameter(beginning().double())
    optimizer = RoundedAdamW([weight], RATE, generator())
    for gradient in gradients():
        (weight * gradient.double()).sum().backward()
    truth, state = moved_by_torch(torch.float32)
    torch.testing.assert_close(weight.detach() - beginning().double(), truth, rtol=1e-3, atol=1e-7)
    for moment, name in zip(optimizer.moments[weight], ("exp_avg", "exp_avg_sq")):
        torch.testing.assert_close(moment, state[name].double(), rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_bits() -> None:
    first, again, other = (moved_by_us(seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_large_parameters_are_updated_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces draw other noise, so bits are compared where rounding is to the nearest, and means where it is not."""
    truth, _ = moved_by_torch(torch.float32)
    with monkeypatch.context() as patched:
        patched.setattr(rounding, "CHUNK", 1000)  # the last piece is shorter
        ours, _ = moved_by_us()
    for piece, true_piece in zip(ours.flatten().split(1000), truth.flatten().split(1000)):
        assert share(piece, true_piece) == pytest.approx(1, abs=0.3 if len(piece) < 1000 else 0.08)
    monkeypatch.setattr(rounding, "round_stochastically", lambda target, values, _: target.copy_(values))
    whole, _ = moved_by_us()
    monkeypatch.setattr(rounding, "CHUNK", 1000)
    assert torch.equal(moved_by_us()[0], whole)


def test_every_parameter_steps_for_itself() -> None:
    """A gradient that is no plain tensor (expanded), one that comes twice in a pass (shared), one that never comes."""
    spread, shared, idle = (nn.Parameter(beginning((8, 8))) for _ in range(3))
    optimizer = RoundedAdamW([spread, shared, idle], 1e-2, generator())
    (spread.sum() + (shared * 2).sum() + (shared @ shared).sum()).backward()
    assert [optimizer.steps[p] for p in (spread, shared, idle)] == [1, 1, 0]
    assert all(p.grad is None for p in (spread, shared, idle))
    moved = beginning((8, 8)).float() - spread.detach().float()
    assert torch.allclose(moved, torch.tensor(1e-2), atol=3e-4)  # a first step is the rate, whatever the gradient
    assert torch.equal(idle, beginning((8, 8)))
