"""The damping of a Hessian: by the error on tokens it has not seen, in float64 where float32 ends, more as a last resort."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from darwinlm.config import DatabaseConfig
from darwinlm.database import build
from darwinlm.database.damping import DAMPINGS, USUAL, attempts, best, held_out_errors
from darwinlm.database.levels import Ladder
from darwinlm.database.store import MANIFEST, Database
from darwinlm.errors import CalibrationError
from darwinlm.models.family import known_families

LADDER = Ladder("model.layers.0.mlp", "mlp", 0, columns=24, group_size=1, removed=(0, 8, 12, 24))


def moments(columns: int, tokens: int, seed: int, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """A layer, and the moments of noisy tokens that it is fitted to and of many clean ones: float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing = normal(columns, columns // 3) @ normal(columns // 3, columns) / columns**0.5 + 0.1 * normal(
        columns, columns
    )
    seen, unseen = (
        normal(tokens, columns) @ mixing + noise * normal(tokens, columns),
        normal(50 * columns, columns) @ mixing,
    )
    return normal(5, columns), seen.T @ seen / tokens, unseen.T @ unseen / len(unseen)


def closed_form(weight: Tensor, fit: Tensor, check: Tensor, kept: Tensor, damping: float) -> float:
    damped = fit + damping * fit.diagonal().mean() * torch.eye(len(fit), dtype=fit.dtype)
    difference = -weight
    difference[:, kept] += weight @ damped[:, kept] @ torch.linalg.inv(damped[kept][:, kept])
    return (torch.trace(difference @ check @ difference.T) / torch.trace(weight @ check @ weight.T)).item()


@pytest.mark.parametrize(("tokens", "noise", "known"), [(13, 0.3, 3e-2), (100_000, 0.0, 1e-4)])
def test_few_noisy_tokens_want_much_damping_and_many_clean_ones_little(tokens: int, noise: float, known: float) -> None:
    weight, fit, check = moments(24, tokens, 0, noise)
    errors = held_out_errors(weight, fit, check, 1, 12)
    kept = (weight.square().sum(0) * fit.diagonal()).argsort()[12:].sort().values
    truth = {damping: closed_form(weight, fit, check, kept, damping) for damping in DAMPINGS}
    assert {float(damping): error for damping, error in errors.items()} == pytest.approx(truth, rel=1e-6)
    assert best(errors) == min(truth, key=truth.__getitem__) == known


@given(st.integers(0, 999), st.sampled_from([1, 2, 4]), st.integers(8, 60))
def test_never_worse_than_the_usual_one_on_the_tokens_held_back(seed: int, size: int, tokens: int) -> None:
    weight, fit, check = moments(24, tokens, seed)
    errors = held_out_errors(weight.float(), fit.float(), check.float(), size, 24 // size // 2)
    assert errors[f"{best(errors):g}"] <= errors[f"{USUAL:g}"]


def test_nothing_to_choose_by_is_the_usual_damping_and_equal_errors_the_largest() -> None:
    assert best({}) == USUAL
    assert best({"0.0001": 0.5, "0.001": 0.5, "0.01": 0.6}) == 1e-3
    assert held_out_errors(torch.ones(2, 4), torch.full((4, 4), torch.nan), torch.eye(4), 1, 2) == {}


def test_precision_is_raised_before_damping() -> None:
    tried = [(pytest.approx(damping), torch.float64) for damping in (1e-2, 1e-1, 1.0)]
    assert list(attempts(1e-2)) == [(1e-2, torch.float32), *tried]


def spiked(smallest: float) -> Tensor:
    """A Hessian that is exact in float32, of integers: one direction holds all energy, and one has this eigenvalue."""
    hessian = torch.full((24, 24), float(2**20), dtype=torch.float64)
    return hessian + torch.diag(torch.full((24,), smallest, dtype=torch.float64))


def written(tmp_path, parts: Tensor, rel_damp: float) -> tuple[Database, Tensor]:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    source = SimpleNamespace(dtype_of=lambda name: torch.float32, family=known_families()["llama"])
    stream = SimpleNamespace(source=source)
    database = Database(tmp_path, {})
    config = DatabaseConfig(rel_damp=rel_damp)
    database.admit([build._write_module(database, build._Waiting(LADDER, weight, parts[:, None]), config, stream)])
    return Database.open(tmp_path), weight


def test_what_float32_cannot_factor_float64_does(tmp_path) -> None:
    hessian, rel_damp = spiked(0.0), 1e-8  # a condition of 2.4e9
    assert torch.linalg.cholesky_ex((hessian + rel_damp * 2**20 * torch.eye(24)).float())[1].item()
    database, weight = written(tmp_path, hessian.float()[None], rel_damp)
    record = database.modules[LADDER.name]
    assert (record.rel_damp, record.precision, record.held_out_errors) == (rel_damp, "float64", {})
    damped = hessian + record.damping * torch.eye(24, dtype=torch.float64)
    kept = database.kept(LADDER.name, 1)
    fitted = weight.double() @ damped[:, kept] @ torch.linalg.inv(damped[kept][:, kept])
    torch.testing.assert_close(database.weight(LADDER.name, 1).double(), fitted, rtol=1e-5, atol=1e-5)


def test_what_float64_cannot_factor_either_is_damped_more_and_recorded(tmp_path, caplog) -> None:
    hessian = spiked(-(2.0**10))  # wants a damping of more than 2^-10 of the diagonal
    with caplog.at_level("WARNING"):
        database, _ = written(tmp_path, hessian.float()[None], 1e-4)
    assert "model.layers.0.mlp: damped by 0.001 instead of 0.0001" in caplog.text
    record = json.loads((tmp_path / MANIFEST).read_text())["modules"][0]
    assert (record["rel_damp"], record["precision"]) == (pytest.approx(1e-3), "float64")
    assert dataclasses.asdict(database.modules[LADDER.name])["rel_damp"] == record["rel_damp"]


def test_the_last_resort_is_a_refusal_by_name(tmp_path) -> None:
    with pytest.raises(
        CalibrationError, match=r"model\.layers\.0\.mlp, in float64 .* not positive definite.*more tokens"
    ):
        written(tmp_path, -spiked(1.0).float()[None] + 2 * torch.diag(torch.full((24,), 2.0**20)), 1e-2)
    assert not (tmp_path / MANIFEST).exists()
