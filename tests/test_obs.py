"""Optimal Brain Surgeon against equations 3 and 4 as printed, closed-form refits and every rival removal, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from darwinlm.database import columns
from darwinlm.database.hessians import damp, drop_dead_columns
from darwinlm.database.obs import PrunedLevel, choose_columns, choose_groups, prune_groups
from darwinlm.errors import CalibrationError


def problem(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A random layer and the damped second moment of its correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=dtype)
    inputs = torch.randn(columns, 3 * columns, generator=generator, dtype=dtype)
    inputs += torch.randn(columns, columns, generator=generator, dtype=dtype) @ inputs / columns**0.5
    hessian = inputs @ inputs.T / inputs.shape[1]
    damp(hessian, 1e-2, "pico")
    return weight, hessian


def plain_obs(weight: Tensor, hessian: Tensor, size: int, rounds: int | None = None) -> tuple[list[int], list[Tensor]]:
    """Equations 3 and 4, one group at a time: the order in which all groups leave, and the weights after each of them."""
    w, k = weight.clone(), torch.linalg.inv(hessian)
    groups = w.shape[1] // size
    served: set[int] = set()
    order: list[int] = []
    weights = [w.clone()]
    for _ in range(groups):
        alive = [g for g in range(groups) if g not in order]
        run_of = {g: g * rounds // groups if rounds else g for g in alive}
        if not (open_groups := [g for g in alive if run_of[g] not in served]):
            served, open_groups = set(), alive

        def score(group: int, w: Tensor = w, k: Tensor = k) -> float:
            m = slice(group * size, (group + 1) * size)
            return torch.trace(w[:, m] @ torch.linalg.inv(k[m, m]) @ w[:, m].T).item()  # eq. 3

        best = min(open_groups, key=score)
        m = slice(best * size, (best + 1) * size)
        step = torch.linalg.inv(k[m, m]) @ k[m]
        w, k = w - w[:, m] @ step, k - k[:, m] @ step  # eq. 4
        w[:, m] = 0
        order.append(best)
        weights.append(w.clone())
        served |= {run_of[best]} if rounds else set()
    return order, weights


def refit(weight: Tensor, hessian: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """W H[:, S] (H[S, S])^-1 and its error tr(dW H dW^T)."""
    fitted = weight @ hessian[:, kept] @ torch.linalg.inv(hessian[kept][:, kept])
    difference = weight.clone()
    difference[:, kept] -= fitted
    return fitted, torch.trace(difference @ hessian @ difference.T).item()


def widened(level: PrunedLevel, like: Tensor) -> Tensor:
    """A level's weight with zeros in the removed columns."""
    wide = torch.zeros_like(like)
    wide[:, level.kept] = level.weight
    return wide


@pytest.mark.parametrize(
    ("columns", "size", "rounds"),
    [(24, 1, None), (127, 1, None), (128, 1, None), (129, 1, None), (130, 1, None), (260, 1, None)]
    + [(24, 2, None), (24, 8, None), (60, 5, None), (24, 2, 3), (24, 2, 12), (24, 24, None), (24, 1, 4), (24, 4, 1)],
)
def test_equals_equations_3_and_4_as_printed(columns: int, size: int, rounds: int | None) -> None:
    weight, hessian = problem(7, columns)
    groups = columns // size
    order, weights = plain_obs(weight, hessian, size, rounds)
    levels = list(prune_groups(weight, hessian, group_size=size, counts=range(groups + 1), rounds=rounds))
    assert levels[-1].removed == order
    for count, level in enumerate(levels):
        difference = weight - weights[count]
        torch.testing.assert_close(widened(level, weight), weights[count], rtol=0, atol=1e-8)
        assert level.error == pytest.approx(torch.trace(difference @ hessian @ difference.T).item(), rel=1e-8, abs=1e-9)


@given(st.integers(1, 4), st.integers(1, 9), st.data())
def test_every_level_is_the_exact_refit_of_nested_columns(size: int, groups: int, data: st.DataObject) -> None:
    weight, hessian = problem(3, size * groups, seed=data.draw(st.integers(0, 999)))
    counts = sorted(data.draw(st.sets(st.integers(0, groups), min_size=1)))
    rounds = data.draw(st.sampled_from([None] + [r for r in range(1, groups + 1) if groups % r == 0]))
    levels = list(prune_groups(weight, hessian, group_size=size, counts=counts, rounds=rounds))
    assert [len(level.removed) for level in levels] == counts
    for level in levels:
        gone = {group * size + i for group in level.removed for i in range(size)}
        assert level.kept.tolist() == sorted(set(range(size * groups)) - gone)
        fitted, error = refit(weight, hessian, level.kept)
        torch.testing.assert_close(level.weight, fitted, rtol=1e-8, atol=1e-8)
        assert level.error == pytest.approx(error, rel=1e-8, abs=1e-9)
    for fewer, more in itertools.pairwise(levels):
        assert more.removed[: len(fewer.removed)] == fewer.removed
        assert more.error >= fewer.error - 1e-9


@pytest.mark.parametrize(("columns", "size"), [(14, 1), (24, 3)])
def test_no_rival_removal_costs_less(columns: int, size: int) -> None:
    weight, hessian = problem(5, columns, seed=3)
    groups = columns // size
    levels = list(prune_groups(weight, hessian, group_size=size, counts=range(groups + 1)))
    for before, after in itertools.pairwise(levels):
        for rival in set(range(groups)) - set(before.removed):
            kept = before.kept[before.kept // size != rival]
            assert after.error <= refit(weight, hessian, kept)[1] + 1e-9


@pytest.mark.parametrize(("columns", "size", "rounds"), [(200, 1, None), (64, 8, None), (64, 4, 4)])
def test_float32_agrees_with_float64(columns: int, size: int, rounds: int | None) -> None:
    weight, hessian = problem(16, columns, seed=1)
    steps = columns // size
    counts = [0, steps // 4, steps // 2, steps - 1, steps]
    exact = prune_groups(weight, hessian, group_size=size, counts=counts, rounds=rounds)
    rounded = prune_groups(weight.float(), hessian.float(), group_size=size, counts=counts, rounds=rounds)
    for one, other in zip(exact, rounded, strict=True):
        assert other.weight.dtype == torch.float32
        assert other.removed == one.removed
        assert other.error == pytest.approx(one.error, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(other.weight.double(), one.weight, rtol=0, atol=1e-3)


def test_arguments_are_left_unchanged_and_the_hessian_decides_the_arithmetic() -> None:
    weight, hessian = problem(4, 12, dtype=torch.float32)
    for size in (1, 3):
        given_weight, given_hessian = weight.bfloat16(), hessian.clone()
        levels = list(prune_groups(given_weight, given_hessian, group_size=size, counts=[0, 2, 4]))
        assert torch.equal(given_weight, weight.bfloat16())
        assert torch.equal(given_hessian, hessian)
        assert {level.weight.dtype for level in levels} == {torch.float32}


@pytest.mark.parametrize("size", [1, 2])
def test_dead_columns_leave_first_at_no_cost(size: int) -> None:
    weight, hessian = problem(4, 12, seed=2)
    dead = torch.tensor([2, 3, 8, 9])
    hessian[dead], hessian[:, dead] = 0, 0
    clean, count = drop_dead_columns(weight, hessian)
    damp(hessian, 1e-2, "pico")
    assert count == len(dead)
    groups = len(dead) // size
    free, paid = prune_groups(clean, hessian, group_size=size, counts=[groups, groups + 1])
    assert not set(free.kept.tolist()) & set(dead.tolist())
    assert free.error == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(free.weight, weight[:, free.kept])
    assert paid.error > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [2, 1]}, "increase strictly"),
        ({"counts": [1, 1]}, "increase strictly"),
        ({"counts": []}, "increase strictly"),
        ({"counts": [-1, 2]}, "increase strictly"),
        ({"counts": [0, 7]}, r"\[0, 6\]"),
        ({"group_size": 5}, "do not fit"),
        ({"hessian": torch.eye(11)}, "do not fit"),
        ({"rounds": 4}, "equal runs"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str) -> None:
    weight, hessian = problem(4, 12)
    arguments = {"weight": weight, "hessian": hessian, "group_size": 2, "counts": [0, 1], **change}
    with pytest.raises(ValueError, match=message):
        list(prune_groups(**arguments))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (lambda hessian: hessian[4, 4].fill_(torch.nan), "--dtype float32"),
        (lambda hessian: hessian[4, 4].fill_(torch.inf), "--dtype float32"),
        (lambda hessian: hessian[4, 4].fill_(-1), "rel_damp.*more tokens"),
        (lambda hessian: hessian.fill_(1), "rel_damp.*more tokens"),
    ],
)
def test_impossible_hessians_say_what_to_change(size: int, spoil, remedy: str) -> None:
    weight, hessian = problem(4, 12)
    spoil(hessian)
    with pytest.raises(CalibrationError, match=remedy):
        list(prune_groups(weight, hessian, group_size=size, counts=[0, 2]))


@pytest.mark.parametrize("block", [1, 5, 8, 128])
def test_the_steps_of_a_gpu_choose_what_those_of_a_cpu_choose(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(6, 40)
    inverse, moment = torch.linalg.inv(hessian), weight.T @ weight
    expected = columns.choose_columns(inverse.clone(), moment.clone(), 39, block)
    monkeypatch.setattr(columns, "HostSteps", columns.DeviceSteps)
    for waste in (0.0, 0.25, 1.0):  # dead columns stay in the matrices
        monkeypatch.setattr(columns, "HOST_WASTE", waste)
        assert columns.choose_columns(inverse.clone(), moment.clone(), 39, block) == expected


@pytest.mark.parametrize("repeats", [True, False])
def test_a_graph_that_captured_nothing_is_noticed(repeats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves what the steps before it chose; so does one that ran on other memory."""

    class Replayed(columns.HostSteps):
        def __call__(self, size: int, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            chosen, r, w = super().__call__(size, torch.zeros_like(dead))
            return (chosen if repeats else torch.zeros_like(chosen)), r * 0, w * 0

    weight, hessian = problem(6, 40)
    monkeypatch.setattr(columns, "HostSteps", Replayed)
    monkeypatch.setattr(columns, "HOST_WASTE", 1.0)
    with pytest.raises(RuntimeError, match="chose a column twice"):
        columns.choose_columns(torch.linalg.inv(hessian), weight.T @ weight, 39, 8)


@pytest.mark.parametrize("spoiled", [-1.0, torch.nan])
def test_lost_definiteness_is_noticed_while_columns_leave(spoiled: float) -> None:
    weight, hessian = problem(4, 12)
    inverse, moment = torch.linalg.inv(hessian), weight.T @ weight
    inverse[5, 5] = spoiled
    with pytest.raises(CalibrationError, match="rel_damp"):
        choose_columns(inverse.clone(), moment, 3)
    with pytest.raises(CalibrationError, match="rel_damp"):
        choose_groups(inverse, moment, 2, 3, None)


def test_damping_refuses_what_calibration_cannot_mean() -> None:
    with pytest.raises(CalibrationError, match=r"layer 7.*--dtype float32"):
        damp(torch.full((3, 3), torch.nan), 1e-2, "layer 7")


def test_a_module_that_nothing_reaches_can_be_factored() -> None:
    hessian = torch.zeros(3, 3)
    assert damp(hessian, 1e-2, "layer 7") == 1.0
    assert torch.equal(hessian, torch.eye(3))


def test_damping_is_relative_to_the_mean_of_the_diagonal() -> None:
    hessian = torch.diag(torch.tensor([1.0, 2.0, 6.0]))
    assert damp(hessian, 0.1, "pico") == pytest.approx(0.3)
    torch.testing.assert_close(hessian, torch.diag(torch.tensor([1.3, 2.3, 6.3])))
