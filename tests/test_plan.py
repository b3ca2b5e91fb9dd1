"""Sizes from configurations alone, against the paper's numbers and stock transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.cli import main
from darwinlm.config import DatabaseConfig, RunConfig, TargetConfig, settled
from darwinlm.errors import RequestError
from darwinlm.run.plan import make_plan
from darwinlm.run.prediction import predict_pruning
from darwinlm.run.recipe import read_recipe
from public_models import MODELS

RECIPES = Path(__file__).parent.parent / "recipes"
PAPER = {  # model -> (recipe, billions of parameters at its target)
    "llama-3.1-8b": ("llama3.1_8b_to_4.6b.yaml", 4.6),
    "qwen2.5-14b": ("qwen2.5_14b_to_8.4b.yaml", 8.4),
}


def plan_of(shape: str, recipe: str, **values):
    """Of a recipe's last pruning, on the whole model."""
    overrides = {"model": str(RECIPES / "shapes" / shape), **values}
    steps = read_recipe(str(RECIPES / recipe), overrides).resolved()
    last = [step.config for step in steps if step.command == "prune"][-1]
    return make_plan(replace(last, model=overrides["model"]))


@pytest.mark.parametrize(("shape", "recipe", "billions"), [(k, *v) for k, v in PAPER.items()])
def test_sizes_of_the_paper(shape, recipe, billions):
    plan = plan_of(shape, recipe)
    assert round(plan.target.parameters / 1e9, 1) == billions
    stock = AutoConfig.from_pretrained(RECIPES / "shapes" / shape)
    with torch.device("meta"):
        assert plan.dense.parameters == AutoModelForCausalLM.from_config(stock).num_parameters()


def test_llama_2_at_levels_5_and_6():
    """32 of 128 columns each: level 5 keeps 16 heads and 5504 columns, level 6 keeps 13 heads and 4416 (eq. 5 and 6)."""
    plan = plan_of("llama-2-7b", "llama2_7b_to_2.7b.yaml")
    outside = 2 * 32000 * 4096 + 4096
    norms = 2 * 4096
    for level, heads, columns in ((5, 16, 5504), (6, 13, 4416)):
        by_hand = outside + 32 * (4 * heads * 128 * 4096 + 3 * columns * 4096 + norms)
        assert plan.levels[level - 1].parameters == by_hand
    assert plan.target.parameters == plan.levels[5].parameters


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_database_bytes_are_those_on_disk(family, checkpoint, database):
    levels = database(family, "auto")
    on_disk = sum(
        levels.weight(ladder.name, level).numel() * 4 for ladder in levels.ladders() for level in range(1, ladder.top)
    )
    values = {"model": str(checkpoint(family)), "database": {"levels": 6, "multiple_of": 8}}
    assert make_plan(settled(values)).database_bytes == on_disk


def test_the_plan_says_which_steps_tensor_parallelism_costs():
    model = str(RECIPES / "shapes" / "llama-3.1-8b")
    plan = make_plan(settled({"model": model, "database": {"tensor_parallel": 4, "attention_unit": "kv_group"}}))
    assert plan.steps == {"attention": 2, "mlp": plan.unsplit_steps["mlp"]}
    assert plan.unsplit_steps["attention"] == 8


def test_a_plan_is_for_any_machine(checkpoint) -> None:
    """A GPU is planned for where there is none: bfloat16 weights and moments, and the dense weights stay on the host."""
    here, there = (
        darwinlm.plan(
            str(checkpoint("llama_gqa")), device=device, database={"multiple_of": 8}, search={"generations": 1}
        ).plan
        for device in ("cpu", "cuda")
    )
    assert (here.machine, there.machine) == ("cpu, float32", "cuda, bfloat16")
    assert there.memory.search < here.memory.search / 2
    with pytest.raises(RequestError, match="no device 'abacus'"):
        darwinlm.plan(str(checkpoint("llama_gqa")), device="abacus")


def test_hours_are_those_of_this_machine_where_it_has_no_gpu(checkpoint, monkeypatch, capsys) -> None:
    """Half of the rate of its products: 2 x operations / rate."""
    model, rate = str(checkpoint("llama_gqa")), 1e6
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("darwinlm.runtime.device.measured_rate", lambda device: rate)
    command = [
        "plan",
        model,
        "--target.parameters",
        "80%",
        "--blocks.sequence_length",
        "128",
        "--database.multiple_of",
        "8",
    ]
    main(command)
    printed = " ".join(capsys.readouterr().out.split())
    blocks = {"sequence_length": 128}
    config = settled(
        {"model": model, "target": {"parameters": "80%"}, "blocks": blocks, "database": {"multiple_of": 8}}
    )
    hours = 2 * predict_pruning(config).work[0].flops / rate / 3600
    assert f"where half of that is reached: database {hours:,.1f} h" in printed
    main([*command, "--plan.device", "H100"])
    assert "Here (" not in capsys.readouterr().out


def planned(name: str, folder: Path, **settings):
    """The plan of a public model, from its configuration alone."""
    values, _ = MODELS[name]
    AutoConfig.for_model(**values).save_pretrained(folder)
    return make_plan(RunConfig(model=str(folder), target=TargetConfig(parameters="75%"), **settings))


ACTIVE = {"Qwen3-30B-A3B": 3_353_032_704, "Mixtral-8x7B": 12_879_925_248, "OLMoE-1B-7B": 1_282_017_280}


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("leaves", ["both", "experts", "columns"])
def test_experts_are_planned_by_what_a_token_passes_through(name, leaves, tmp_path):
    plan = planned(name, tmp_path, database=DatabaseConfig(experts_lose=leaves))
    dense, target = plan.dense, plan.target
    assert dense.parameters - dense.layer_parameters + dense.active_layer_parameters == ACTIVE[name]
    assert 0.72 * dense.parameters <= target.parameters <= 0.75 * dense.parameters


@pytest.mark.parametrize("name", MODELS)
def test_public_models_are_planned_by_their_exact_sizes(name, tmp_path):
    plan = planned(name, tmp_path)
    assert plan.dense.parameters == MODELS[name][1]
    assert plan.target.parameters <= 0.75 * plan.dense.parameters
