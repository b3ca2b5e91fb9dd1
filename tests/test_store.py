"""The level database: what is read back is what was pruned, it is small, and damage is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import pico
from darwinlm.cost import database_bytes
from darwinlm.database import build
from darwinlm.database.damping import DAMPINGS, best
from darwinlm.database.levels import Ladder
from darwinlm.database.obs import prune_groups
from darwinlm.database.store import MANIFEST, Database
from darwinlm.errors import CalibrationError, DamagedFileError, RequestError

ATTENTION = Ladder("model.layers.0.self_attn", "attention", 0, columns=12, group_size=3, removed=(0, 1, 2, 4))
MLP = Ladder("model.layers.10.mlp", "mlp", 10, columns=12, group_size=1, removed=(0, 4, 9, 12))


def levels_of(ladder: Ladder) -> list:
    generator = torch.Generator().manual_seed(ladder.layer)
    weight, inputs = (torch.randn(5, 12, generator=generator) for _ in range(2))
    return list(
        prune_groups(weight, inputs.T @ inputs + torch.eye(12), group_size=ladder.group_size, counts=ladder.removed)
    )


def begin(folder: Path, *ladders: Ladder, dtype: torch.dtype = torch.float32) -> Database:
    """A database of these modules."""
    database = Database(folder, {"model": "pico"})
    for ladder in ladders:
        database.admit([database.write(ladder, iter(levels_of(ladder)), dtype, damping=0.5, dead_columns=2)])
    return database


@pytest.fixture
def written(tmp_path: Path) -> Database:
    """A database of two modules, admitted in the wrong order."""
    return begin(tmp_path / "database", MLP, ATTENTION)


def test_what_is_read_back_is_what_was_pruned(written: Database) -> None:
    opened = Database.open(written.folder)
    assert opened.identity == {"model": "pico"}
    assert opened.modules == written.modules
    assert opened.ladders() == [ATTENTION, MLP]
    assert opened.damaged(thorough=True) == []
    for ladder in opened.ladders():
        record, levels = opened.modules[ladder.name], levels_of(ladder)
        assert record.errors == [level.error for level in levels]
        assert record.relative_errors == pytest.approx([level.error / levels[-1].error for level in levels])
        assert (record.damping, record.dead_columns) == (0.5, 2)
        for number, level in enumerate(levels):
            assert torch.equal(opened.kept(ladder.name, number), level.kept)
            if 0 < number < ladder.top:
                assert torch.equal(opened.weight(ladder.name, number), level.weight)


def test_levels_are_kept_in_the_checkpoints_dtype(tmp_path: Path) -> None:
    database = begin(tmp_path, MLP, dtype=torch.bfloat16)
    assert torch.equal(database.weight(MLP.name, 1), levels_of(MLP)[1].weight.bfloat16())


def test_a_killed_build_leaves_whole_modules_only(tmp_path: Path) -> None:
    database = begin(tmp_path, ATTENTION)

    def killed():
        yield levels_of(MLP)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.write(MLP, killed(), torch.float32, damping=0.5, dead_columns=0)
    opened = Database.open(tmp_path)
    assert list(opened.modules) == [ATTENTION.name]
    assert opened.damaged(thorough=True) == []


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("spoil", [alter, truncate, Path.unlink])
@pytest.mark.parametrize("ladder", [ATTENTION, MLP], ids=lambda ladder: ladder.kind)
def test_damage_is_found(written: Database, spoil: Callable[[Path], None], ladder: Ladder) -> None:
    spoil(written.folder / written.modules[ladder.name].file)
    assert Database.open(written.folder).damaged(thorough=True) == [ladder.name]
    assert Database.open(written.folder).damaged() == ([] if spoil is alter else [ladder.name])


@pytest.mark.parametrize("spoil", [alter, truncate, Path.unlink])
def test_reading_a_damaged_module_says_what_to_do(written: Database, spoil: Callable[[Path], None]) -> None:
    file = written.folder / written.modules[MLP.name].file
    written.weight(MLP.name, 1)  # what was right when it was read first
    spoil(file)
    for read in (written.kept, written.weight):
        with pytest.raises(DamagedFileError, match=rf"{file}' is missing or damaged.*--rebuild"):
            read(MLP.name, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is missing"),
        ("", "is damaged"),
        ('{"format": 1,', "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format": 1, "identity": {}, "modules": [{}]}', "is damaged"),
        ('{"format": 1, "identity": {}, "modules": 3}', "is damaged"),
    ],
)
def test_an_unreadable_manifest(written: Database, text: str | None, said: str) -> None:
    manifest = written.folder / MANIFEST
    manifest.unlink() if text is None else manifest.write_text(text)
    with pytest.raises(DamagedFileError, match=rf"{MANIFEST}' {said}"):
        Database.open(written.folder)


def test_a_database_of_another_version(written: Database) -> None:
    manifest = written.folder / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(RequestError, match=r"another version.*format 99"):
        Database.open(written.folder)


def stock_inputs(checkpoint: Path, matrix: str) -> tuple[Tensor, Tensor]:
    """A matrix of the stock model and what reaches it from the calibration tokens: (R, C) and (N, C), float64."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    caught: list[Tensor] = []
    module = model.get_submodule(matrix)
    module.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    with torch.no_grad():
        model(pico.random_tokens(8, 32))
    return module.weight.detach().double(), caught[0].flatten(0, 1).double()


@pytest.mark.parametrize("matrix", ["self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("family", ["llama_mha", "llama_bias", "qwen3"])
@pytest.mark.parametrize("layer", [0, 2])
def test_levels_refit_the_stock_models_activations(family: str, layer: int, matrix: str, checkpoint, database) -> None:
    """From the dense model's own inputs, in float64: H, its damping, W H[:, S] (H[S, S])^-1 and the error."""
    levels, name = database(family, "auto"), f"model.layers.{layer}.{matrix.split('.')[0]}"
    weight, inputs = stock_inputs(checkpoint(family), f"model.layers.{layer}.{matrix}")
    hessian = inputs.T @ inputs / len(inputs)
    record = levels.modules[name]
    assert record.rel_damp == best(record.held_out_errors)
    assert len(record.held_out_errors) == len(DAMPINGS)
    damping = record.rel_damp * hessian.diagonal().mean()
    assert record.damping == pytest.approx(damping.item(), rel=1e-4)
    hessian += damping * torch.eye(len(hessian))
    scale = torch.trace(weight @ hessian @ weight.T).item()
    for level in range(1, record.ladder.top):
        kept = levels.kept(name, level)
        fitted = weight @ hessian[:, kept] @ torch.linalg.inv(hessian[kept][:, kept])
        torch.testing.assert_close(levels.weight(name, level).double(), fitted, rtol=0, atol=1e-3)
        difference = weight.clone()
        difference[:, kept] -= fitted
        error = torch.trace(difference @ hessian @ difference.T).item()
        assert record.relative_errors[level] == pytest.approx(error / scale, rel=1e-3, abs=1e-6)
    assert record.relative_errors[record.ladder.top] == pytest.approx(1)


def test_only_kept_columns_take_room(tmp_path: Path) -> None:
    """Ten steps: the mean level keeps half of its columns, and dense and gone take nothing."""
    heads = {"num_attention_heads": 10, "num_key_value_heads": 10}
    folder = pico.make_checkpoint(tmp_path / "pico", "llama_mha", hidden_size=80, intermediate_size=640, **heads)
    source = pico.ModelSource(str(folder))
    database = pico.make_database(tmp_path / "database", source, levels=10, multiple_of=32)
    assert {ladder.top for ladder in database.ladders()} == {10}
    on_disk = sum(path.stat().st_size for path in database.folder.iterdir())
    dense_copies = sum(11 * ladder.columns * 80 * 4 for ladder in database.ladders())
    assert on_disk <= 0.45 * dense_copies
    predicted = database_bytes(source.shape, database.ladders(), 4)
    assert predicted <= sum(record.bytes for record in database.modules.values()) <= 1.05 * predicted


def test_a_begun_database_is_completed_to_the_same_bytes(tmp_path: Path, source, database) -> None:
    whole: Database = database("qwen2", "kv_group")
    shutil.copytree(whole.folder, tmp_path / "begun")
    begun = Database.open(tmp_path / "begun")
    for name in ("model.layers.0.mlp", "model.layers.1.self_attn"):
        (begun.folder / begun.modules.pop(name).file).unlink()
    begun.admit([])
    completed = pico.make_database(begun.folder, source("qwen2"), "kv_group", start=begun)
    assert completed.modules == whole.modules
    assert Database.open(begun.folder).damaged(thorough=True) == []


def test_a_complete_database_runs_no_model(source, database, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Database = database("qwen2", "kv_group")

    def forbidden(*arguments: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(build, "block_hessians", forbidden)
    pico.make_database(whole.folder, source("qwen2"), "kv_group", start=Database.open(whole.folder))


def test_a_model_that_overflows_is_refused_by_the_modules_name(tmp_path: Path) -> None:
    model = pico.random_model("llama_mha")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = 1e30
    model.save_pretrained(tmp_path)
    with pytest.raises(CalibrationError, match=r"model\.layers\.1\.mlp: .*NaN or Inf.*--dtype float32"):
        pico.make_database(tmp_path / "database", pico.ModelSource(str(tmp_path)))
