"""A comparison: its numbers are those of the single commands, and a killed one goes on."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.comparison.methods.registry import METHODS
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.export.huggingface import write_model
from darwinlm.measure.quality import HeldOut
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import read_tensors
from killing import kill_within

SETTINGS = {
    "blocks": {"sequence_length": 32, "hessian": 24, "train": 8, "select": 8, "held_out": 8},
    "database": {"levels": 4, "multiple_of": 4},
    "search": {
        "generations": 3,
        "offspring": 3,
        "survivors": [2, 1],
        "train_tokens": [64, 128],
        "select_tokens": [64, 128],
        "start_tokens": 128,
        "start_rounds": 1,
        "learning_rate": 1e-3,
    },
}
ASKED = {"methods": "uniform,magnitude,random,ziplm,evopress,sheared,darwinlm", "levels": "1,2", "train_tokens": 64}


@pytest.fixture(scope="module")
def finished(checkpoint, text, tmp_path_factory) -> Path:
    """A comparison that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    darwinlm.compare(str(checkpoint("llama_gqa")), data=str(text), output=str(output), **ASKED, **SETTINGS)
    return output


def results(run: Path) -> dict:
    """All cells, but what they took."""
    values = json.loads((run / "compare/compare.json").read_text())
    for table in values["tables"]:
        place = table["headings"].index("search")
        table["rows"] = [[*row[:place], *row[place + 1 :]] for row in table["rows"]]
    return {**values, "rows": 0, "cells": [{**cell, "search_seconds": 0} for cell in values["cells"]]}


def cell(run: Path, method: str, level: float) -> dict:
    return next(c for c in results(run)["cells"] if (c["method"], c["level"]) == (method, level))


def test_tables_and_pictures_lie_there(finished):
    folder = finished / "compare"
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert [(row["method"], float(row["level"])) for row in rows] == [
        (method, level) for level in (1.0, 2.0) for method in ASKED["methods"].split(",")
    ]
    assert {row["seeds"] for row in rows if row["method"] == "random"} == {"3"}
    assert "| DarwinLM |" in (folder / "compare.md").read_text()
    for name in ("tradeoff", "allocations_level1", "allocations_level2"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_mean_is_over_its_seeds(finished):
    values = json.loads((finished / "compare/compare.json").read_text())
    drawn = [c["quality"]["perplexity"] for c in values["cells"] if (c["method"], c["level"]) == ("random", 2.0)]
    row = next(row for row in values["rows"] if (row["method"], row["level"]) == ("random", 2.0))
    assert len(set(drawn)) == 3
    assert row["perplexity"] == pytest.approx(sum(drawn) / 3)
    assert row["perplexity_range"] == [min(drawn), max(drawn)]
    assert f"({min(drawn):,.2f}-{max(drawn):,.2f})" in (finished / "compare/compare.md").read_text()


def test_its_darwinlm_and_uniform_are_those_of_prune(finished, checkpoint, text, tmp_path):
    asked = {**SETTINGS, "target": {"level": 2}, "refit": {"tokens": 0}}  # methods are compared as they are found
    summary = darwinlm.prune(
        str(checkpoint("llama_gqa")), data=str(text), output=str(tmp_path / "run"), **asked
    ).summary
    assert cell(finished, "darwinlm", 2)["levels"] == json.loads((tmp_path / "run/genome.json").read_text())["levels"]
    for method, name in (("darwinlm", "pruned"), ("uniform", "uniform")):
        assert cell(finished, method, 2)["quality"] == pytest.approx(summary[name], rel=1e-5)
    assert results(finished)["dense"] == pytest.approx(summary["dense"], rel=1e-6)


def test_models_are_kept_where_that_is_asked_and_are_those_that_were_scored(finished, checkpoint, text, tmp_path):
    shutil.copytree(finished, run := tmp_path / "run")
    dense, methods = str(checkpoint("llama_gqa")), ("uniform", "magnitude", "sheared", "flap")
    asked = {"methods": ",".join(methods), "levels": "2", "keep_models": True}
    darwinlm.compare(dense, data=str(text), output=str(run), **asked, **SETTINGS)
    device, tokens = torch.device("cpu"), read_tensors(run / "blocks.safetensors")[0]["held_out"].long()
    held_out = HeldOut(tokens, BlockStream(ModelSource(dense), device, torch.float32))
    for method in methods:
        kept = ModelSource(str(run / f"compare/{method}/level2_seed0/model"))
        found, scored = held_out.quality(BlockStream(kept, device, torch.float32)), cell(run, method, 2)["quality"]
        zeros = found.parameters - scored["parameters"]  # FLAP has biases, and the family only of all matrices
        assert (zeros > 0) == (method == "flap")
        assert dataclasses.asdict(found) == pytest.approx(scored | {"parameters": found.parameters}, rel=1e-5)
        stored = {name: tensor for file in set(kept.files.values()) for name, tensor in read_tensors(file)[0].items()}
        assert sum(int((t == 0).sum()) for name, t in stored.items() if name.endswith(".bias")) == zeros


def test_biases_that_no_configuration_names_are_in_no_checkpoint(source, tmp_path):
    """Qwen2 has none behind attention: FLAP's model of it is scored, and not kept."""
    model = AutoModelForCausalLM.from_pretrained(source("qwen2").folder)
    model.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(torch.ones(32))
    assert not write_model(tmp_path / "model", source("qwen2"), model, card="", made_from={})
    assert not (tmp_path / "model").exists()


def test_post_training_is_adamw_on_cross_entropy(finished, checkpoint):
    source, tokens = ModelSource(str(checkpoint("llama_gqa"))), read_tensors(finished / "blocks.safetensors")[0]
    assembler = Assembler(source, Database.open(finished / "database"))
    found, device = cell(finished, "uniform", 2), torch.device("cpu")
    held_out = HeldOut(tokens["held_out"].long(), BlockStream(source, device, torch.float32))
    reached = []
    for order in ((a, b) for a in range(8) for b in range(8) if a != b):  # which two blocks, is for the seed to say
        model = assembler.model(assembler.space.genome(found["levels"]), device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.0)
        for block in order:
            ids = tokens["train"][block : block + 1].long()
            loss = cross_entropy(model(ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        reached.append(held_out.quality_of_model(model.eval()).perplexity)
    assert sum(value == pytest.approx(found["trained"]["perplexity"], rel=1e-6) for value in reached) == 1


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("darwinlm.comparison.cells", "write_json", 6),
        ("darwinlm.search.selection", "kls_to_teacher", 17),
        ("darwinlm.search.record", "write_json", 3),
        ("darwinlm.comparison.table", "draw_comparison", 1),
    ],
)
def test_kill_9_and_the_same_command_give_the_same_cells(module, name, call, finished, checkpoint, text, tmp_path):
    settings, output, model = tmp_path / "settings.yaml", tmp_path / "killed", str(checkpoint("llama_gqa"))
    settings.write_text(yaml.safe_dump(SETTINGS))
    given = [f"--{key.replace('_', '-')}={value}" for key, value in ASKED.items()]
    command = ["compare", model, "--data", str(text), "--config", str(settings), "--output", str(output), *given]
    kill_within(module, name, call, command)
    done = [path for path in output.glob("compare/*/*/*.json") if path.name != "timings.json"]
    before = {path: path.stat().st_mtime_ns for path in done}
    darwinlm.compare(model, data=str(text), output=str(output), **ASKED, **SETTINGS)
    assert results(output) == results(finished)
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


def test_finished_cells_are_not_made_again(finished, monkeypatch):
    def again(*arguments: object, **options: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("darwinlm.comparison.cells._found", again)
    monkeypatch.setattr("darwinlm.comparison.cells._trained", again)
    fewer = darwinlm.compare(output=str(finished), methods="darwinlm", levels=[2], train_tokens=64)
    assert [row.method for row in fewer.rows] == ["darwinlm"]
    darwinlm.compare(output=str(finished), **ASKED)


def test_other_settings_are_refused_by_name_and_change_nothing(finished):
    before = (finished / "config.yaml").read_bytes()
    with pytest.raises(RequestError, match=r"search.generations: there 3, asked 4.*another --output"):
        darwinlm.compare(output=str(finished), **ASKED, search={"generations": 4})
    with pytest.raises(RequestError, match=r"learning_rate: there 3e-05, asked 0.01"):
        darwinlm.compare(output=str(finished), **ASKED, learning_rate=1e-2)
    assert (finished / "config.yaml").read_bytes() == before


def test_a_method_without_a_search_does_not_mind_its_settings(finished, tmp_path):
    copied = shutil.copytree(finished, tmp_path / "copied")
    found = darwinlm.compare(output=str(copied), methods="ziplm", levels="2", search={"generations": 9})
    assert found.comparison.cells[0].levels == cell(finished, "ziplm", 2)["levels"]


def test_seeds_repeat_what_searches_and_nothing_else(finished, tmp_path):
    copied = shutil.copytree(finished, tmp_path / "copied")
    found = darwinlm.compare(output=str(copied), methods="uniform,darwinlm", levels="2", seeds=2)
    assert [(row.method, row.seeds) for row in found.rows] == [("uniform", 1), ("darwinlm", 2)]
    assert found.comparison.cells[1].levels == cell(finished, "darwinlm", 2)["levels"]


def test_what_was_trained_on_is_counted(finished):
    """3 generations of 3 x 64 and then (2 + the parent) x 128 tokens; uniform and EvoPress train nothing."""
    counted = {c["method"]: c["search_tokens"] for c in results(finished)["cells"]}
    assert counted["darwinlm"] == counted["sheared"] == 3 * (3 * 64 + 3 * 128)
    assert counted["uniform"] == counted["evopress"] == 0


def test_a_sheared_model_keeps_what_it_was_trained_to(finished):
    """Its parameters are the budget's but for absent norms; its weights are not those of the database."""
    for level in (1, 2):
        own, uniform = cell(finished, "sheared", level), cell(finished, "uniform", level)
        assert 0 <= uniform["quality"]["parameters"] - own["quality"]["parameters"] <= 6 * 32
        folder = finished / f"compare/sheared/level{level}_seed0/sheared"
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "orders.safetensors"}


def test_trained_models_need_room_only_where_they_are_missing(finished, monkeypatch):
    monkeypatch.setattr("darwinlm.run.request.require_room", lambda *arguments: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(RequestError, match=r"What sheared trains needs .* MB"):
        darwinlm.compare(output=str(finished), methods="sheared", levels="1,3")
    assert darwinlm.compare(output=str(finished), methods="sheared", levels="1").rows


def test_a_damaged_cell_is_named(finished, tmp_path):
    copied = shutil.copytree(finished, tmp_path / "copied")
    path = copied / "compare/ziplm/level2_seed0/pruned.json"
    values = json.loads(path.read_text())
    del values["quality"]
    path.write_text(json.dumps(values))
    with pytest.raises(DamagedFileError, match=r"level2_seed0/pruned.json' lacks 'quality'"):
        darwinlm.compare(output=str(copied), methods="ziplm", levels="2")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--methods", "zplm"], "no method 'zplm'; there are: all, uniform"),
        (["--levels", "0,2"], "--levels names 0; each must lie between 0 (dense) and 4"),
        (["--levels", "two"], "--levels is 'two', which cannot be read"),
        (["--levels", "1%"], "parameters are fewer than the uniform model of level 3.95 has"),
        (["--levels", "160%"], "a share must lie between 0% and 100%, both excluded, or a level such as 2"),
        (["--levels", "nan"], "--levels names nan"),
        (["--train-tokens", "1000000000"], "from 2 to 256 (blocks.train x blocks.sequence_length)"),
        (["--train-tokens", "nan"], "--train_tokens is 'nan'; it must be a whole number"),
        (["--seeds", "1.5"], "--seeds is 1.5; it must be a whole number"),
        (["--learning-rate", "0"], "--learning_rate is 0; it must be positive"),
    ],
)
def test_mistyped(typed, said, capsys, checkpoint, text, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    where = ["--data", text, "--config", settings, "--output", tmp_path / "run", "--levels", "2"]
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in ["compare", checkpoint("llama_gqa"), *where, *typed]])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_prints_a_table_for_each_level(finished, capsys):
    main(["compare", "--output", os.fspath(finished), *(f"--{k.replace('_', '-')}={v}" for k, v in ASKED.items())])
    printed = capsys.readouterr().out
    assert "Level 1: at most" in printed
    assert "Level 2: at most" in printed
    assert METHODS["magnitude"].title in printed
