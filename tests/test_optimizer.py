"""AdamW with compensated sums on bfloat16 weights against torch's own on float32 ones."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darwinlm.search import optimizer as room
from darwinlm.search.optimizer import CompensatedAdamW, dithered

RATE, STEPS = 1e-5, 60
CPU_NAN, GPU_NAN = 0x7FC00000, 0x7FFFFFFF


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers below and above a float32 one that is none: 8 bits of significand, exponent from -126."""
    _, exponent = math.frexp(value)
    step = math.ldexp(1.0, max(exponent, -125) - 8)
    return math.floor(value / step) * step, math.ceil(value / step) * step


@pytest.mark.parametrize("value", [1.003, -1.003, 0.0201, -0.0201, 255.7, 1.9999, 3.1e-30, -2.7e-38, 1e-40, 1e30])
@pytest.mark.parametrize("along", ["places", "steps"])
def test_the_mean_of_a_dither_is_the_value(value: float, along: str) -> None:
    """Each is one of the two neighbours, the nearer one as often as its nearness says: to 4 / n, as no dice would."""
    count = 2000
    values = torch.full((count,), value)
    exact = values[0].double().item()  # as float32 holds it
    low, high = neighbours(exact)
    cut = dithered(values, 7) if along == "places" else torch.cat([dithered(values[:5], i)[4:] for i in range(count)])
    assert cut.equal(cut.bfloat16().float())
    assert set(cut.double().tolist()) <= {low, high}
    assert abs(cut.double().mean().item() - exact) <= 4 / count * (high - low)


def test_numbers_that_bfloat16_holds_stay() -> None:
    exact = torch.randn(1000, generator=generator()).bfloat16()
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, 2.0**-133, torch.finfo(torch.bfloat16).max])
    for values in (exact.float(), special):
        before = values.clone()
        for step in range(10):
            assert torch.equal(dithered(values, step), before)
    assert math.copysign(1.0, dithered(torch.tensor([-0.0]), 3).item()) == -1.0


@pytest.mark.parametrize("bits", [CPU_NAN, GPU_NAN, CPU_NAN - (1 << 31), GPU_NAN - (1 << 31)])
def test_a_gradient_that_is_no_number_stays_one(bits: int) -> None:
    """In the weight and both moments, of every bit pattern that processors write."""
    nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert all(dithered(nan, step).isnan().all() for step in range(1000))
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = CompensatedAdamW([weight], RATE)
    (weight * torch.cat([nan, torch.tensor([1.0, math.inf])])).sum().backward()
    assert weight.isnan().tolist() == [True, False, True]
    assert optimizer.state[weight].first.isnan()[0]
    assert optimizer.state[weight].second.isnan()[0]


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


def moved_by_us(**options: Any) -> tuple[Tensor, CompensatedAdamW]:
    weight = nn.Parameter(beginning(**options))
    optimizer = CompensatedAdamW([weight], RATE)
    for gradient in gradients(**options):
        (weight * gradient).sum().backward()
        assert weight.grad is None  # freed as soon as it is used
    return weight.detach().double() - beginning(**options).double(), optimizer


def share(moved: Tensor, truth: Tensor) -> float:
    """How far along the true move the other one went."""
    return ((moved * truth).sum() / truth.square().sum()).item()


def test_updates_below_a_bfloat16_step_are_kept() -> None:
    """On average over a matrix; with what was cut off, each weight is that of float32 to a fraction of an update."""
    truth, _ = moved_by_torch(torch.float32)
    nearest, _ = moved_by_torch(torch.bfloat16)
    ours, optimizer = moved_by_us()
    (state,) = optimizer.state.values()
    large = beginning().abs() > 0.01  # where every single update is below half a step
    for where in (large, ~large):
        assert share(ours[where], truth[where]) == pytest.approx(1, abs=0.04)
    assert share(nearest, truth) < 0.3
    assert share(nearest[large], truth[large]) < 0.02
    whole = ours + state.rest.double()
    assert share(whole, truth) == pytest.approx(1, abs=0.002)
    assert torch.linalg.norm(whole - truth) < 0.02 * torch.linalg.norm(truth)


def test_moments_are_those_of_float32_on_average() -> None:
    _, truth = moved_by_torch(torch.float32)
    _, optimizer = moved_by_us()
    (state,) = optimizer.state.values()
    assert state.first.dtype == state.second.dtype == state.rest.dtype == torch.bfloat16
    assert share(state.first.double(), truth["exp_avg"].double()) == pytest.approx(1, abs=0.01)
    assert state.second.double().sum().item() == pytest.approx(truth["exp_avg_sq"].double().sum().item(), rel=0.01)
    assert torch.allclose(state.first.float(), truth["exp_avg"], rtol=0.05, atol=0.02)
    assert torch.allclose(state.second.float(), truth["exp_avg_sq"], rtol=0.1, atol=1e-5)


@pytest.mark.parametrize("falling", [False, True])
def test_the_second_moment_does_not_stand_still(falling: bool) -> None:
    """After many steps a step moves it by a thousandth, less than half of what bfloat16 resolves."""
    weight, truth = nn.Parameter(beginning((32, 32))), torch.zeros(32, 32, dtype=torch.float64)
    nearest = truth.bfloat16()
    optimizer = CompensatedAdamW([weight], RATE)
    for number, noise in enumerate(gradients((32, 32), 1000)):
        gradient = noise.sign() * (0.1 if falling and number > 300 else 1)
        (weight * gradient).sum().backward()
        truth.lerp_(gradient.double().square(), 0.001)
        nearest = nearest.float().lerp(gradient.float().square(), 0.001).bfloat16()
    ours = optimizer.state[weight].second.double()
    assert ours.sum().item() == pytest.approx(truth.sum().item(), rel=0.01)
    assert not 0.8 < nearest.double().sum().item() / truth.sum().item() < 1.5


def test_without_rounding_it_is_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic alone: where weights and moments are wide enough to lose nothing, the same numbers as torch's."""
    monkeypatch.setattr(room, "dithered", lambda values, step=0: values)
    weight = nn.Parameter(beginning().double())
    optimizer = CompensatedAdamW([weight], RATE)
    for gradient in gradients():
        (weight * gradient.double()).sum().backward()
    truth, state = moved_by_torch(torch.float32)
    ours = optimizer.state[weight]
    torch.testing.assert_close(weight.detach() + ours.rest - beginning().double(), truth, rtol=1e-3, atol=1e-7)
    for moment, name in zip((ours.first, ours.second), ("exp_avg", "exp_avg_sq")):
        torch.testing.assert_close(moment, state[name].double(), rtol=1e-4, atol=1e-6)


def test_nothing_that_ran_before_changes_the_bits() -> None:
    first, _ = moved_by_us()
    torch.manual_seed(1)
    moved_by_us(shape=(8, 8))
    assert torch.equal(moved_by_us()[0], first)


def test_large_parameters_are_updated_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is dithered as a parameter of its own."""
    whole, _ = moved_by_us()
    monkeypatch.setattr(room, "CHUNK", 1000)  # the last piece is shorter
    ours, _ = moved_by_us()
    assert torch.equal(ours.flatten()[:1000], whole.flatten()[:1000])
    truth, _ = moved_by_torch(torch.float32)
    for piece, true_piece in zip(ours.flatten().split(1000), truth.flatten().split(1000)):
        assert share(piece, true_piece) == pytest.approx(1, abs=0.3 if len(piece) < 1000 else 0.08)


def test_every_parameter_steps_for_itself() -> None:
    """A gradient that is no plain tensor (expanded), one that comes twice in a pass (shared), one that never comes."""
    spread, shared, idle = (nn.Parameter(beginning((8, 8))) for _ in range(3))
    optimizer = CompensatedAdamW([spread, shared, idle], 1e-2)
    (spread.sum() + (shared * 2).sum() + (shared @ shared).sum()).backward()
    assert [optimizer.state[p].steps for p in (spread, shared, idle)] == [1, 1, 0]
    assert all(p.grad is None for p in (spread, shared, idle))
    moved = beginning((8, 8)).float() - spread.detach().float()
    assert torch.allclose(moved, torch.tensor(1e-2), atol=3e-4)  # a first step is the rate, whatever the gradient
    assert torch.equal(idle, beginning((8, 8)))


def test_parameters_die_with_their_optimizer() -> None:
    """At once, without the garbage collector; and without their optimizer they stand still."""
    weight = nn.Parameter(beginning((8, 8)))
    optimizer = CompensatedAdamW([weight], 1e-2)
    weight.sum().backward()
    gone = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert gone() is None
        before = weight.detach().clone()
        weight.sum().backward()
        assert torch.equal(weight, before)
        gone = weakref.ref(weight)
        del weight
        assert gone() is None
    finally:
        gc.enable()
