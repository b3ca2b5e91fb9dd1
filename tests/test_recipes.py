"""Recipes: what they predict, against stock transformers and the paper; that they run, go on after a kill, and refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.cli import main
from darwinlm.config import DatabaseConfig
from darwinlm.config.prediction import PlanConfig
from darwinlm.database.levels import Ladder, ladders
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.models.source import ModelSource
from darwinlm.run.arithmetic import forward_flops, pruning_flops, pruning_seconds
from darwinlm.run.recipe_steps import RECORD
from killing import kill_within

FOLDER = Path(__file__).parent.parent / "recipes"
PAPER = {  # shape -> (recipe, billions of parameters after each step, the paper's number)
    "llama-2-7b": ("llama2_7b_to_2.7b.yaml", (3.50, 3.50, 2.87, 2.87)),
    "llama-3.1-8b": ("llama3.1_8b_to_4.6b.yaml", (4.61, 4.61)),
    "qwen2.5-14b": ("qwen2.5_14b_to_8.4b.yaml", (8.42, 8.42)),
}


def prediction(shape: str, **overrides: Any):
    return darwinlm.plan_recipe(FOLDER / PAPER[shape][0], model=FOLDER / "shapes" / shape, **overrides).prediction


@pytest.mark.parametrize("shape", PAPER)
def test_the_papers_recipes_pass_from_configurations_alone(shape):
    found = prediction(shape)
    assert tuple(round(step.after / 1e9, 2) for step in found.steps) == PAPER[shape][1]
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER / "shapes" / shape))
    assert found.steps[0].before == dense.num_parameters()
    assert all(a.after == b.before for a, b in zip(found.steps, found.steps[1:]))
    assert all(piece.memory_bytes < found.memory_bytes for piece in found.work)
    trained = [piece for piece in found.work if piece.name == "training"]
    assert 10e9 <= trained[-1].tokens < 10.02e9
    head = " ".join(line.strip("# ") for line in (FOLDER / PAPER[shape][0]).read_text().splitlines() if line[:1] == "#")
    assert f"Predicted: {found.headline}" in head


def test_llama_2_at_its_levels_by_hand():
    """32 heads of 128 and 11008 columns: 16 and 5504 stay at level 5, 13 and 4416 at level 6 (eq. 5 and 6)."""
    outside, norms = 2 * 32000 * 4096 + 4096, 2 * 4096
    sizes = [
        outside + 32 * (4 * heads * 128 * 4096 + 3 * columns * 4096 + norms)
        for heads, columns in ((16, 5504), (13, 4416))
    ]
    assert [step.after for step in prediction("llama-2-7b").steps[::2]] == sizes


def test_hours_are_operations_over_the_rate():
    plan = PlanConfig()
    found = prediction("llama-3.1-8b")
    training = found.work[-1]
    assert training.hours * 3600 == pytest.approx(training.flops / (8 * 989e12 * 0.4))
    assert training.flops > 6 * found.steps[-1].before * training.tokens  # and attention, and what is computed again
    twice = prediction("llama-3.1-8b", plan={"device_tflops": 2 * 989, "devices": 4})
    assert twice.work[-1].hours == pytest.approx(training.hours)
    half = prediction("llama-3.1-8b", plan={"utilisation": plan.utilisation / 2})
    uploads = [piece.name == "evolution" for piece in found.work]  # which are no question of that
    for slow, piece, uploaded in zip(half.work, found.work, uploads, strict=True):
        assert slow.hours <= 2 * piece.hours * (1 + 1e-9)
        assert uploaded or slow.hours == pytest.approx(2 * piece.hours)
    assert (
        prediction("llama-3.1-8b", plan={"device": "RTX4090"}).work[1].memory_bytes > PlanConfig("RTX4090").memory_bytes
    )


@pytest.mark.parametrize("family", ["llama_mha", "qwen2", "qwen3_tied"])
def test_the_operations_of_a_forward_pass_are_those_that_torch_counts(family, source, checkpoint):
    """Torch counts attention to all tokens, a causal kernel half of it; norms and biases are no products."""
    length, shape = 64, source(family).shape
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pico.random_tokens(1, length), use_cache=False)
    attention = sum(2 * widths.heads * shape.head_dim * length for widths in shape.layers)
    assert counter.get_total_flops() / length == pytest.approx(forward_flops(shape, length) + attention, rel=0.02)


def test_modules_of_a_block_are_shared_out(source):
    found: list[Ladder] = ladders(source("llama_mha").shape, DatabaseConfig(levels=6, multiple_of=8))
    flops = [pruning_flops(ladder, 32) for ladder in found]
    assert pruning_seconds(found, 32, 1, 1.0) == sum(flops)
    assert (
        pruning_seconds(found, 32, 2, 1.0)
        == pruning_seconds(found, 32, 8, 1.0)
        == sum(map(max, flops[::2], flops[1::2]))
    )


SETTINGS: dict[str, Any] = {
    "blocks": {"sequence_length": 32, "hessian": 24, "train": 8, "select": 8, "held_out": 8},
    "database": {"levels": 4, "multiple_of": 4},
    "search": {
        "generations": 2,
        "offspring": 4,
        "survivors": [2, 1],
        "train_tokens": [64, 128],
        "select_tokens": [64, 128],
        "learning_rate": 1e-3,
    },
    "train": {"tokens": 1024, "sequence_length": 32, "batch_tokens": 128, "learning_rate": 1e-3, "warmup_steps": 1},
}
STEPS: list[Any] = [
    {"prune": {"target": {"level": 2}}},
    "train",
    {"prune": {"target": {"level": 3}}},
    {"train": {"train": {"tokens": 512}}},
]
NAMES = ("1-prune", "2-train", "3-prune", "4-train")


@pytest.fixture(scope="module")
def recipe(checkpoint, text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    places = {"model": str(checkpoint("llama_mha")), "data": str(text), "output": str(path.parent / "whole")}
    path.write_text(yaml.safe_dump({**places, "settings": SETTINGS, "steps": STEPS}))
    return path


@pytest.fixture(scope="module")
def finished(recipe) -> Path:
    """A recipe that nothing interrupted."""
    darwinlm.run_recipe(recipe)
    return recipe.parent / "whole"


def changed(recipe: Path, path: Path, **values: Any) -> str:
    path.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **values}))
    return str(path)


def answer(output: Path) -> dict[str, bytes]:
    """Weights and configurations of every step's model."""
    return {
        f"{step}/{name}": (output / step / "model" / name).read_bytes()
        for step in NAMES
        for name in ("model.safetensors", "config.json")
    }


def test_every_step_goes_on_from_the_one_before(finished, recipe):
    results = darwinlm.run_recipe(recipe).steps
    assert [result["step"] for result in results] == list(NAMES)
    shapes = [ModelSource(result["model"]).shape for result in results]
    assert [shape.parameters for shape in shapes] == [result["parameters"] for result in results]
    assert shapes[0] == shapes[1]
    assert shapes[2] == shapes[3]
    predicted = darwinlm.plan_recipe(recipe).prediction
    for shape, step in zip(shapes, predicted.steps):
        assert abs(shape.parameters - step.after) <= 6 * shape.hidden  # norms of modules that are gone
    levels = [json.loads((finished / step / "genome.json").read_text())["levels"] for step in NAMES[::2]]
    assert all(levels[1][name] >= level for name, level in levels[0].items())
    assert [sum(found.values()) for found in levels] == [12, 18]
    for step, name in zip(NAMES[1:], NAMES):
        assert yaml.safe_load((finished / step / "config.yaml").read_text())["model"] == str(finished / name / "model")


def test_a_finished_recipe_does_nothing_again_and_needs_no_databases(finished, recipe, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/1-prune/database")
    record = tmp_path / "copy" / RECORD
    record.write_text(record.read_text().replace(str(finished), str(tmp_path / "copy")))

    def again(config: Any) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr("darwinlm.run.recipe_steps.RUN", {"prune": again, "train": again})
    assert len(darwinlm.run_recipe(recipe, output=tmp_path / "copy").steps) == 4
    shutil.rmtree(tmp_path / "copy/2-train/model")
    with pytest.raises(RequestError, match=r"Step 2-train is finished, but .* is gone"):
        darwinlm.run_recipe(recipe, output=tmp_path / "copy")


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [("darwinlm.database.store", "write_tensors", 8), ("darwinlm.run.recipe_steps", "write_json", 2)],
)
def test_kill_9_and_the_same_command_give_the_same_bytes(module, name, call, finished, recipe, tmp_path):
    command = ["recipe", str(recipe), "--output", str(tmp_path / "killed")]
    kill_within(module, name, call, command)
    done = {path.parent.name for path in (tmp_path / "killed").glob("*/summary.json")}
    assert "1-prune" in done
    assert "3-prune" not in done
    main(command)
    assert answer(tmp_path / "killed") == answer(finished)


def test_another_recipe_in_the_same_folder_is_refused_by_name(finished, recipe, tmp_path):
    before = (finished / RECORD).read_bytes()
    other = changed(
        recipe, tmp_path / "other.yaml", settings={**SETTINGS, "train": {**SETTINGS["train"], "tokens": 2048}}
    )
    with pytest.raises(RequestError, match=r"2-train.*train\.tokens: there 1024, asked 2048.*another --output"):
        darwinlm.run_recipe(other)
    with pytest.raises(RequestError, match=r"1-prune.*seed: there 0, asked 3"):
        darwinlm.run_recipe(recipe, seed=3)
    assert (finished / RECORD).read_bytes() == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": []}, "`steps` must be a list"),
        ({"steps": ["prune", {"bake": {}}]}, "Step 2 is {'bake': {}}; it must be one of prune, train"),
        ({"steps": [{"prune": [1]}]}, "Step 1, prune, has \\[1\\]"),
        ({"steps": [{"train": {"model": "other"}}]}, "names its own model"),
        ({"stages": []}, "no field 'stages' in a recipe"),
        ({"settings": [1]}, "`settings` must be a group"),
        ({"model": None}, "No model is given.*--model"),
        ({"steps": [{"prune": {"target": {"level": 4}}}]}, r"step 1-prune: target.level is 4"),
        ({"steps": [{"prune": {"serach": {}}}]}, "step 1-prune: There is no setting 'serach'"),
        ({"steps": [STEPS[2], STEPS[0]]}, "Step 2-prune: The model holds the target as it is"),
        (
            {"steps": [{"prune": {"target": {"level": 2}, "database": {"multiple_of": 7}}}]},
            "Step 1-prune: The MLP has 48 columns",
        ),
        ({"steps": ["train"], "settings": {"plan": {"utilisation": 40}}}, "plan.utilisation is 40"),
        ({"data": None}, "no data is given"),
    ],
)
def test_an_impossible_recipe_is_refused_before_anything_is_made(values, said, recipe, tmp_path):
    asked = changed(recipe, tmp_path / "recipe.yaml", **{"output": str(tmp_path / "runs"), **values})
    with pytest.raises(RequestError, match=said):
        darwinlm.run_recipe(asked)
    assert not (tmp_path / "runs").exists()


def test_settings_without_steps_are_no_recipe():
    with pytest.raises(RequestError, match=r"no `steps`, so it is no recipe.*--config"):
        darwinlm.run_recipe(FOLDER / "pep_llama_reference.yaml", model="a", output="b")


def test_the_commands_say_what_they_do(finished, recipe, checkpoint, capsys):
    main(["recipe", str(recipe)])
    said = capsys.readouterr().out
    assert "4-train" in said
    assert f"Next: darwinlm eval {finished}/4-train/model" in said
    main(
        ["plan", str(checkpoint("llama_mha")), "--recipe", str(recipe), "--plan.devices", "3", "--plan.device", "A100"]
    )
    assert "3 x A100" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["recipe"])
    assert ended.value.code == 2
    assert "No recipe is given" in capsys.readouterr().err


def test_a_damaged_record_is_named(recipe, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / RECORD).write_text("{")
    with pytest.raises(DamagedFileError, match=RECORD):
        darwinlm.run_recipe(recipe, output=tmp_path / "copy")


def test_a_prediction_is_plain_data():
    assert json.loads(json.dumps(dataclasses.asdict(prediction("qwen2.5-14b"))))["machine"] == "8 x H100"
