"""Hard targets against what is really there: parameters, files, caches; and requests that cannot be met."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.config import TargetConfig, resolve
from darwinlm.config.quantities import quantity
from darwinlm.errors import RequestError
from darwinlm.models.source import ModelSource
from darwinlm.target.budget import uniform
from darwinlm.target.target import Target


def wanted(source: ModelSource, assembler: Assembler, **target) -> Target:
    asked = TargetConfig(**{"level": None, **target})
    share = None if asked.level is None else asked.level / 6
    return Target(asked, share, source.shape, assembler.space, source.dtype.itemsize)


@pytest.mark.parametrize(("family", "unit"), pico.FAMILIES_AND_UNITS)
def test_costs_are_those_of_the_models(family, unit, source, database) -> None:
    """Of every genome: parameters of the whole model and of its layers, and bytes of weights and of a filled cache."""
    assembler = Assembler(source(family), database(family, unit))
    asked = {"parameters": "50%", "memory": "50%", "batch": 3, "context": 11}
    whole = wanted(source(family), assembler, **asked).budget(assembler.module_widths)
    layers = wanted(source(family), assembler, parameters="50%", parameters_of="layers").budget(assembler.module_widths)
    for seed in range(6):
        genome = pico.random_genome(assembler.database, seed)
        model = assembler.model(genome, pico.CPU)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert whole.limits[0].spent(genome) == parameters
        assert layers.limits[0].spent(genome) == sum(p.numel() for p in model.model.layers.parameters())
        assert whole.limits[1].spent(genome) == 4 * parameters + cache_bytes(model)
    dense = assembler.model((0,) * len(assembler.space.ladders), pico.CPU)
    assert whole.limits[0].most == sum(parameter.numel() for parameter in dense.parameters()) // 2
    assert whole.limits[1].most == (4 * sum(p.numel() for p in dense.parameters()) + cache_bytes(dense)) // 2


@torch.no_grad()
def cache_bytes(model) -> int:
    """Keys and values of 3 sequences of 11 tokens, as transformers keep them."""
    cache = model(pico.random_tokens(3, 11), use_cache=True).past_key_values
    held = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in held)


@pytest.mark.parametrize(("unit", "shrinks"), [("kv_group", True), ("balanced", False)])
def test_only_whole_groups_shrink_the_cache(unit, shrinks, source, database) -> None:
    assembler = Assembler(source("llama_gqa"), database("llama_gqa", unit))
    ladder = next(l for l in assembler.space.ladders if l.kind == "attention")
    heads = [assembler.module_widths(ladder, level).kv_heads for level in range(ladder.top)]
    assert (heads[0] > heads[-1]) == shrinks


def test_several_targets_hold_at_once(source, database) -> None:
    assembler = Assembler(source("qwen3"), database("qwen3", "kv_group"))
    asked = wanted(source("qwen3"), assembler, parameters="70%", memory="60%", context=64, level=3.0)
    budget = asked.budget(assembler.module_widths)
    assert {limit.name for limit in budget.limits} == {"parameters", "memory", "attention steps", "mlp steps"}
    genome = uniform(budget, random.Random(0))
    assert budget.is_full(genome)
    totals, wished = assembler.space.totals(genome), assembler.space.targets(0.5)
    assert all(totals[kind] >= wished[kind] for kind in totals)
    assert assembler.shape(genome).parameters <= 0.7 * source("qwen3").shape.parameters


@pytest.mark.parametrize(
    ("written", "unit", "value"),
    [
        ("2.7B", "parameters", 2.7e9),
        ("350m", "parameters", 350e6),
        (350e6, "parameters", 350e6),
        ("1_000_000", "parameters", 1e6),
        ("1e9", "parameters", 1e9),
        ("60%", "parameters", 0.6),
        ("8GB", "memory", 8e9),
        ("8 gb", "memory", 8e9),
        ("1.5GiB", "memory", 1.5 * 2**30),
        ("500M", "memory", 500e6),
        ("2x", "speedup", 2),
        (1.5, "speedup", 1.5),
    ],
)
def test_quantities_as_people_write_them(written, unit, value) -> None:
    found = quantity(written, unit)
    assert found.value == pytest.approx(value, abs=0)
    assert found.is_share == str(written).endswith("%")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"parameters": "lots"}, "'lots', which cannot be read; write it like 2.7B"),
        ({"parameters": "0.6"}, r"target\.parameters is '0\.6'"),
        ({"parameters": "0%"}, "between 0% and 100%"),
        ({"parameters": "120%"}, "between 0% and 100%"),
        ({"memory": "8XB"}, "write it like 8GB"),
        ({"speedup": "0.5x", "latency_table": "t"}, "must be more than 1x"),
        ({"speedup": "2x"}, "darwinlm bench MODEL --table"),
        ({"parameters": "1B", "context": 0}, r"target\.context is 0"),
        ({"parameters": None}, "Nothing is asked"),
    ],
)
def test_targets_that_cannot_be_read_are_refused(target, said) -> None:
    with pytest.raises(RequestError, match=said):
        resolve({"target": target})


def test_who_names_a_target_replaces_what_lower_layers_ask() -> None:
    lower = {"target": {"level": 4, "memory": "1GB", "context": 7}}
    assert resolve(lower, {"target": {"parameters": "3B"}}).target == TargetConfig(None, "3B", context=7)
    assert resolve(lower, {"target": {"level": 3, "speedup": 2, "latency_table": "t"}}).target.memory is None
    assert resolve(lower, {"target": {"batch": 2}}).target == TargetConfig(4.0, memory="1GB", context=7, batch=2)
    assert resolve({"target": {"parameters": "3B"}}, {"target": {"level": 3}}).target == TargetConfig(3.0)
    assert resolve({}).target == TargetConfig(None, "60%")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            {"parameters": 1000},
            r"target\.parameters 1000 cannot be met: .* with every module gone 16,928 parameters are left",
        ),
        ({"parameters": 1000, "memory": "1KB"}, r"target\.memory 1KB cannot be met"),
        ({"memory": "9GB"}, "holds the target as it is"),
        ({"parameters": "9B"}, "holds the target as it is: it has .* parameters"),
    ],
)
def test_impossible_targets_are_refused_by_every_command_before_the_work(target, said, checkpoint, tmp_path) -> None:
    text, model = tmp_path / "text.txt", str(checkpoint("llama_gqa"))
    text.write_text("some text that repeats; " * 300)
    settings = {"data": str(text), "output": str(tmp_path / "run"), **pico.RUN, "target": target}
    for command in (darwinlm.prune, darwinlm.build_database, darwinlm.plan):
        with pytest.raises(RequestError, match=said):
            command(model, **settings)
    assert not (tmp_path / "run" / "database").exists()


@pytest.mark.parametrize("start", ["uniform", "linearized"])
def test_the_whole_way_to_a_target(start, checkpoint, tmp_path) -> None:
    """The checkpoint keeps both targets, by its files; the summary says so; the same search goes on, another is refused."""
    (tmp_path / "text.txt").write_text("".join(f"{number} and {number * number}; " for number in range(1000)))
    common = {"data": str(tmp_path / "text.txt"), "output": str(tmp_path / "run"), **pico.RUN}
    common |= {"search": {**pico.RUN["search"], "start": start}, "target": {"parameters": "62%", "memory": "70%"}}
    summary = darwinlm.prune(str(checkpoint("llama_gqa")), **common).summary
    dense, limits = ModelSource(str(checkpoint("llama_gqa"))).shape, summary["achieved"]["limits"]
    with safe_open(tmp_path / "run/model/model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert limits["parameters"] == {
        "asked": int(0.62 * dense.parameters),
        "got": stored,
        "smallest": dense.parameters - dense.layer_parameters,
    }
    assert summary["pruned"]["parameters"] == stored <= limits["parameters"]["asked"]
    assert limits["memory"]["got"] <= limits["memory"]["asked"]
    assert summary["uniform"]["parameters"] <= limits["parameters"]["asked"]
    assert summary["target"]["parameters"] == "62%"
    before = (tmp_path / "run/genome.json").read_bytes()
    darwinlm.search_genome(str(tmp_path / "run"), target={"parameters": "62.0%", "memory": "70 %"})
    assert (tmp_path / "run/genome.json").read_bytes() == before
    with pytest.raises(
        RequestError, match=r"target\.parameters: there 0\.62 of dense, asked 0\.61 of dense.*--restart"
    ):
        darwinlm.search_genome(str(tmp_path / "run"), target={"parameters": "61%", "memory": "70%"})
    history = (tmp_path / "run/search/history.jsonl").read_text().splitlines()
    assert len(history) == pico.RUN["search"]["generations"]
    assert json.loads((tmp_path / "run/search/start.json").read_text())["start"] == start


def test_a_search_under_a_budget_goes_on_as_if_it_had_never_stopped(checkpoint, tmp_path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{number} and {number * number}; " for number in range(1000)))
    found = []
    for steps in ([4], [1, 4]):
        output = tmp_path / f"run{len(steps)}"
        for generations in steps:
            search = {**pico.RUN["search"], "start": "uniform", "generations": generations}
            common = {**pico.RUN, "search": search, "target": {"parameters": "60%"}}
            darwinlm.build_database(
                str(checkpoint("llama_gqa")), data=str(tmp_path / "text.txt"), output=output, **common
            )
            levels = darwinlm.search_genome(str(output), search=search).levels
        found.append(levels)
    assert found[0] == found[1]


RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize(
    ("shape", "parameters"), [("llama-2-7b", "2.7B"), ("llama-3.1-8b", "4.6B"), ("qwen2.5-14b", "8.4B")]
)
@pytest.mark.parametrize("unit", ["auto", "balanced"])
def test_sizes_of_the_paper_are_met_from_configurations_alone(shape, parameters, unit) -> None:
    plan = darwinlm.plan(
        str(RECIPES / "shapes" / shape), target={"parameters": parameters}, database={"attention_unit": unit}
    ).plan
    assert 0.995 <= plan.target.parameters / (float(parameters[:-1]) * 1e9) <= 1
    assert plan.limits["parameters"]["got"] == plan.target.parameters
