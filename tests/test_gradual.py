"""Pruning what is pruned already: levels keep their meaning, what is gone stays gone, what is kept is what was there."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.config import DatabaseConfig, TargetConfig
from darwinlm.cost import nominal_module
from darwinlm.database.levels import ladders
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome, Space, is_valid
from darwinlm.models.source import ModelSource
from darwinlm.search.mutation import offspring
from darwinlm.target.budget import level_budget, uniform
from darwinlm.target.shapes import possible_shapes
from darwinlm.target.target import Target
from test_genome import SHARES, TOPS, space_of

TOKENS = pico.random_tokens(2, 24, seed=1)
FEW = [("llama_mha", "auto"), ("llama_gqa", "kv_group"), ("qwen2", "query_head"), ("qwen3", "balanced")]
LEVELS = {"levels": 6, "multiple_of": 8}


def export(assembler: Assembler, genome: Genome, folder: Path) -> ModelSource:
    export_checkpoint(assembler, genome, folder, {}, {})
    return ModelSource(str(folder))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(TOKENS, use_cache=False).logits


def space_now(source: ModelSource, unit: str) -> Space:
    return Space(tuple(ladders(source.shape, DatabaseConfig(attention_unit=unit, **LEVELS))))


def first_genomes(database) -> list[Genome]:
    """Random ones, and one that lacks a layer, an attention and an MLP."""
    gone = {(0, "attention"), (1, "mlp"), (2, "attention"), (2, "mlp")}
    absent = tuple(l.top if (l.layer, l.kind) in gone else l.top // 2 for l in database.ladders())
    return [*(pico.random_genome(database, seed) for seed in range(3)), absent]


@pytest.mark.parametrize(("family", "unit"), pico.FAMILIES_AND_UNITS)
def test_a_checkpoint_remembers_its_levels_and_is_itself_at_them(family, unit, source, database, tmp_path):
    """Bit for bit: the model at its present levels is the checkpoint, in weights and in configuration."""
    levels = database(family, unit)
    assembler = Assembler(source(family), levels)
    for number, genome in enumerate(first_genomes(levels)):
        again = export(assembler, genome, tmp_path / str(number))
        assert again.shape.whole == assembler.source.shape
        assert space_now(again, unit).present == genome
        second = pico.make_database(tmp_path / f"levels{number}", again, unit)
        copy = export(Assembler(again, second), genome, tmp_path / f"copy{number}")
        tensors = [load_file(form.folder / "model.safetensors") for form in (again, copy)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
        assert (again.folder / "config.json").read_bytes() == (copy.folder / "config.json").read_bytes()


@pytest.mark.parametrize(("family", "unit"), FEW)
def test_two_steps_give_the_shapes_of_one(family, unit, source, database, tmp_path):
    """And compute what the first step's model does, masked, with columns that are some of the first step's."""
    levels = database(family, unit)
    direct = Assembler(source(family), levels)
    for number, genome in enumerate(first_genomes(levels)):
        again = export(direct, genome, tmp_path / str(number))
        second = pico.make_database(tmp_path / f"levels{number}", again, unit)
        gradual = Assembler(again, second)
        for seed in range(3):
            further = pico.random_genome(second, seed)
            assert all(a <= b for a, b in zip(genome, further))
            for found, wanted in zip(gradual.shape(further).layers, direct.shape(further).layers, strict=True):
                assert found.intermediate == wanted.intermediate
                assert found.heads - found.padding == wanted.heads - wanted.padding
                assert unit == "query_head" or found == wanted
            model = gradual.model(further, pico.CPU)
            truth = pico.mask(direct.model(genome, pico.CPU), second, further)
            torch.testing.assert_close(logits(model), logits(truth), rtol=0, atol=1e-4)
            rows_are_nested(direct, gradual, genome, further)


def rows_are_nested(direct: Assembler, gradual: Assembler, genome: Genome, further: Genome) -> None:
    """The rows of q and gate, by their bytes: second step within first step within dense; padding aside."""

    def rows(tensors: dict[str, Tensor], name: str) -> set[bytes]:
        return {row.numpy().tobytes() for row in tensors.get(name, torch.zeros(0)) if row.any()}

    models = [
        dict(gradual.tensors(further)),
        dict(direct.tensors(genome)),
        dict(direct.source.tensors(direct.source.files)),
    ]
    for layer in range(len(direct.source.shape.layers)):
        for matrix in ("self_attn.q_proj", "mlp.gate_proj"):
            second, first, dense = (rows(model, f"model.layers.{layer}.{matrix}.weight") for model in models)
            assert second <= first <= dense


@pytest.mark.parametrize(("family", "unit"), FEW)
def test_hard_targets_of_a_pruned_model_count_what_is_there(family, unit, source, database, tmp_path):
    """Costs equal the parameters of real models; no level below the present ones is taken; layers that are gone stay."""
    levels = database(family, unit)
    for number, genome in enumerate(first_genomes(levels)):
        again = export(Assembler(source(family), levels), genome, tmp_path / str(number))
        assembler = Assembler(again, pico.make_database(tmp_path / f"levels{number}", again, unit))
        wanted = Target(TargetConfig(level=None, parameters="90%"), None, again.shape, assembler.space, 4)
        for widths in (assembler.module_widths, functools.partial(nominal_module, again.shape)):
            budget = wanted.budget(widths)
            assert budget.lowest == genome
            assert budget.limits[0].spent(genome) == again.shape.parameters
        budget, rng = wanted.budget(assembler.module_widths), random.Random(number)
        parent = uniform(budget, rng)
        for child in offspring(parent, 8, budget, 3, rng):
            model = assembler.model(child, pico.CPU)
            assert sum(p.numel() for p in model.parameters()) == budget.limits[0].spent(child) <= budget.limits[0].most
            assert all(now <= level for now, level in zip(genome, child))
        assert all(kv_heads for _, kv_heads in possible_shapes(again.shape, assembler.space.ladders).attention)


@pytest.mark.parametrize(("family", "unit"), FEW)
def test_the_result_is_loaded_by_others_and_pruned_a_third_time(family, unit, source, database, tmp_path):
    levels = database(family, unit)
    genome, current = first_genomes(levels)[0], source(family)
    for step in range(3):
        assembler = Assembler(current, levels)
        current = export(assembler, genome, tmp_path / f"model{step}")
        torch.testing.assert_close(
            logits(load(current.folder)), logits(assembler.model(genome, pico.CPU)), rtol=0, atol=1e-5
        )
        assert space_now(current, unit).present == genome
        levels = pico.make_database(tmp_path / f"levels{step}", current, unit)
        steps = range(len(genome))
        genome = tuple(min(levels.ladders()[i].top, genome[i] + (i % 3 == step)) for i in steps)


@pytest.mark.parametrize(("family", "unit"), [("llama_gqa", "kv_group"), ("qwen2", "query_head")])
def test_all_forms_of_a_second_step(family, unit, source, database, tmp_path):
    """The portable form has its logits, and the real llama.cpp its log-probabilities."""
    from llama_cpp import Engine

    levels = database(family, unit)
    again = export(Assembler(source(family), levels), first_genomes(levels)[3], tmp_path / "first")
    second = pico.make_database(tmp_path / "levels", again, unit)
    further = pico.random_genome(second, 1)
    final = export(Assembler(again, second), further, tmp_path / "model")
    canonical, portable, gguf = darwinlm.export_checkpoint(
        str(final.folder), portable=True, format="gguf", dtype="f32"
    ).forms
    model = load(canonical.path)
    torch.testing.assert_close(logits(load(portable.path)), logits(model), rtol=0, atol=1e-5)
    tokens = TOKENS[0].tolist()
    truth = model.double()(torch.tensor([tokens])).logits[0, -1].detach().log_softmax(-1).float()
    found = Engine(gguf.path).log_probabilities(tokens, pico.VOCABULARY)
    torch.testing.assert_close(found, truth, rtol=0, atol=5e-6)
    asked = pico.RUN | {"database": {"levels": 4, "multiple_of": 4}}
    with pytest.raises(RequestError, match="portable form"):
        darwinlm.prune(str(portable.path), data="stdlib", output=str(tmp_path / "run"), **asked)


@pytest.mark.parametrize("unit", pico.UNITS)
def test_training_elsewhere_keeps_the_levels(unit, source, database, tmp_path):
    """`save_pretrained` of transformers writes neither our record nor our modeling file's neighbours."""
    levels = database("llama_gqa", unit)
    genome = first_genomes(levels)[1]
    export(Assembler(source("llama_gqa"), levels), genome, tmp_path / "model")
    model = load(tmp_path / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "trained")
    trained = ModelSource(str(tmp_path / "trained"))
    assert space_now(trained, unit).present == genome
    second = pico.make_database(tmp_path / "levels", trained, unit)
    copy = Assembler(trained, second).model(genome, pico.CPU)
    assert torch.equal(logits(copy), logits(load(tmp_path / "trained")))


def test_an_imported_model_is_counted_from_the_whole_one(database, checkpoint, tmp_path):
    """Its widths need not be on the ladder: the present level is the last that leaves no less."""
    levels = database("llama_mha", "auto")
    masked = pico.zero_masked(checkpoint("llama_mha"), levels, (0,) * 6)
    with torch.no_grad():
        masked.model.layers[0].mlp.down_proj.weight[:, :19] = 0  # 29 of 48 are left: more than level 3 leaves
        masked.model.layers[1].self_attn.o_proj.weight[:, :8] = 0  # three of four heads: level 1
        masked.model.layers[2].mlp.down_proj.weight.zero_()
    masked.save_pretrained(tmp_path / "masked")
    pico.tokenizer().save_pretrained(tmp_path / "masked")
    darwinlm.import_checkpoint(tmp_path / "masked", tmp_path / "model")
    again = ModelSource(str(tmp_path / "model"))
    space = space_now(again, "auto")
    assert space.named(space.present) == {
        **{ladder.name: 0 for ladder in space.ladders},
        "model.layers.0.mlp": 2,
        "model.layers.1.self_attn": 1,
        "model.layers.2.mlp": 6,
    }
    second = pico.make_database(tmp_path / "levels", again)
    for level, columns in ((2, 29), (3, 24), (4, 16)):
        genome = tuple(level if l.name == "model.layers.0.mlp" else l.present for l in space.ladders)
        assert Assembler(again, second).shape(genome).layers[0].intermediate == columns


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ("balanced", "kv_group", "Choose balanced or query_head, or auto"),
        ("kv_group", "balanced", "Choose kv_group or query_head, or auto"),
    ],
)
def test_another_unit_is_refused_and_auto_finds_one(first, then, said, source, database, tmp_path):
    levels = database("qwen2", first)
    genome = tuple(1 if ladder.kind == "attention" else 0 for ladder in levels.ladders())
    again = export(Assembler(source("qwen2"), levels), genome, tmp_path / "model")
    with pytest.raises(RequestError, match=rf"attention_unit is {then}.*{said}"):
        space_now(again, then)
    assert space_now(again, "auto") == space_now(again, first)


@st.composite
def begun_spaces(draw: st.DrawFn) -> Space:
    """Modules at any level, gone ones among them."""
    space = space_of(draw(TOPS), draw(TOPS))
    present = [draw(st.integers(0, ladder.top)) for ladder in space.ladders]
    return Space(tuple(dataclasses.replace(l, present=p) for l, p in zip(space.ladders, present)))


@given(begun_spaces(), SHARES, st.integers(0, 2**32))
def test_the_start_adds_what_is_lacking(space: Space, share: float, seed: int) -> None:
    totals, targets = space.totals(space.present), space.targets(share)
    if any(targets[kind] < totals[kind] for kind in space.kinds):
        return
    budget = level_budget(space, share)
    start = uniform(budget, random.Random(seed))
    assert is_valid(space, start)
    assert space.totals(start) == targets
    coarsest = 1 / min((ladder.top for ladder in space.ladders), default=1)
    parts = [(level - l.present) / l.top for level, l in zip(start, space.ladders) if level < l.top]
    assert not parts or max(parts) - min(parts) <= 2 * coarsest + 1e-6  # of what stays, as much goes everywhere
    for child in offspring(start, 4, budget, 3, random.Random(seed)):
        assert is_valid(space, child)
        assert space.totals(child) == targets


@pytest.fixture(scope="module")
def stages(checkpoint, text, tmp_path_factory) -> list[Path]:
    """The runs to level 2 of 4 and from there to level 3."""
    folder = tmp_path_factory.mktemp("stages")
    darwinlm.prune(str(checkpoint("llama_mha")), data=str(text), output=str(folder / "first"), **pico.RUN)
    further = {**pico.RUN, "target": {"level": 3}}
    darwinlm.prune(str(folder / "first/model"), data=str(text), output=str(folder / "second"), **further)
    return [folder / "first", folder / "second"]


def test_a_run_goes_on_from_a_run(stages, checkpoint):
    first, second = (json.loads((stage / "genome.json").read_text()) for stage in stages)
    assert first["levels"].keys() == second["levels"].keys()
    assert all(second["levels"][name] >= level for name, level in first["levels"].items())
    assert [genome["totals"][kind] for genome in (first, second) for kind in ("attention", "mlp")] == [6, 6, 9, 9]
    start = json.loads((stages[1] / "search/start.json").read_text())["levels"]
    assert sum(start.values()) == 18
    summary = json.loads((stages[1] / "summary.json").read_text())
    dense = ModelSource(str(checkpoint("llama_mha"))).shape.parameters
    assert summary["dense"]["parameters"] == first["totals"]["parameters"]
    assert summary["achieved"]["mlp_level"] == summary["achieved"]["attention_level"] == 3
    assert summary["achieved"]["parameter_ratio_to_original"] == second["totals"]["parameters"] / dense
    assert "pruned before" in (stages[1] / "model/README.md").read_text()


def test_what_is_gone_does_not_come_back(stages, text, tmp_path):
    model = str(stages[0] / "model")
    for level in (1, 2):
        further = {**pico.RUN, "target": {"level": level}}
        with pytest.raises(
            RequestError, match=r"holds the target as it is: it has 6 attention steps.*Ask for a smaller one"
        ):
            darwinlm.prune(model, data=str(text), output=str(tmp_path / "run"), **further)
        with pytest.raises(RequestError, match="holds the target as it is"):
            darwinlm.plan(model, **further)
    assert not (tmp_path / "run/database").exists()
    with pytest.raises(RequestError, match="compared from a whole model"):
        darwinlm.compare(
            model, data=str(text), output=str(tmp_path / "compared"), levels="3", **{**pico.RUN, "target": {"level": 3}}
        )


def test_a_plan_counts_from_the_checkpoint(stages, capsys):
    main(
        [
            "plan",
            str(stages[0] / "model"),
            "--database.levels",
            "4",
            "--database.multiple_of",
            "4",
            "--target.level",
            "3",
        ]
    )
    assert "as it is" in capsys.readouterr().out
    main(["database", "--show", "--output", str(stages[1])])
    assert (stages[1] / "database/errors.png").exists()
    plan = darwinlm.plan(str(stages[0] / "model"), **{**pico.RUN, "target": {"level": 3}}).plan
    assert plan.dense.parameters == ModelSource(str(stages[0] / "model")).shape.parameters
    assert [row.level for row in plan.levels] == [2, 3]
    found = ModelSource(str(stages[1] / "model")).shape
    assert abs(plan.target.parameters - found.parameters) <= 6 * found.hidden  # the norms of modules that are gone
    on_disk = [load_file(path) for path in (stages[1] / "database").glob("*.safetensors")]
    assert plan.database_bytes == sum(t.nbytes for file in on_disk for name, t in file.items() if name != "order")
