"""`darwinlm report` of a training, a family, a comparison, a part of a run, and of damaged files: a page or one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import darwinlm
import training
from chromium import looked_at
from darwinlm.cli import main
from darwinlm.measure.quality import Quality
from test_report import SETTINGS, page

DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]\n[]\n",
    "a number": lambda text: "7\n7\n",
    "other names": lambda text: '{"other": {"levels": {"x": "y"}}}\n',
    "no text": lambda text: text[:5] + "\x00\x1b",
    "nested": lambda text: "[" * 100_000 + "\n",
}
"""What may have become of a file."""


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory) -> Path:
    """The folder of a training towards a teacher; read only."""
    folder = tmp_path_factory.mktemp("trained")
    text, dense = training.write_text(folder), str(checkpoint("llama_gqa"))
    settings = {"train": {**training.TRAIN, "teacher": dense, "eval_every_tokens": 512}, "blocks": training.BLOCKS}
    darwinlm.train(dense, data=str(text), output=str(folder / "out"), device="cpu", **settings)
    return folder / "out"


@pytest.fixture(scope="module")
def family(checkpoint, text, tmp_path_factory) -> Path:
    """Two nested models; read only."""
    output = tmp_path_factory.mktemp("family") / "run"
    settings = {key: value for key, value in SETTINGS.items() if key != "target"}
    darwinlm.prune_family(str(checkpoint("llama_gqa")), targets="1,2", data=str(text), output=str(output), **settings)
    return output


def numbers(row: dict) -> list[str]:
    return [f"{row['parameters']:,}", f"{row['perplexity']:.2f}", f"{row['kl']:.4f}"]


def test_a_training(trained, tmp_path):
    darwinlm.report(trained)
    found = page(trained)
    assert found.sections == ["asked", "quality", "training", "time", "next", "load", "settings"]
    assert "not yet" not in found.text
    assert ", trained" in found.text
    summary = json.loads((trained / "summary.json").read_text())
    for name in ("before", "trained"):
        assert f"{summary[name]['perplexity']:.2f}" in found.text
        assert f"{summary[name]['kl']:.4f}" in found.text
    assert f"{summary['tokens']:,}" in found.text
    assert "trust_remote_code" not in "".join(found.texts).split("config.yaml")[0]  # a stock model
    begun = shutil.copytree(trained, tmp_path / "begun")
    (begun / "summary.json").unlink()
    shutil.rmtree(begun / "model")
    darwinlm.report(begun)
    found = page(begun)
    assert found.sections == ["asked", "training", "time", "next", "settings"]
    assert f"darwinlm train --output {begun}" in found.text
    assert "not yet: training, checkpoint, evaluation" in found.text


def test_a_family_and_one_of_its_models(family, trained, tmp_path):
    darwinlm.report(family)
    found = page(family)
    assert {"family", "database"} <= set(found.sections)
    assert "not yet" not in found.text
    kept = json.loads((family / "family/family.json").read_text())
    for row in (kept["dense"], *(member["pruned"] for member in kept["members"])):
        assert all(number in found.text for number in numbers(row))
    member = family / "family" / kept["members"][-1]["folder"]
    darwinlm.report(member)
    found = page(member)
    assert {"asked", "quality", "genome", "search", "database", "load"} <= set(found.sections)
    assert "level 2" in found.text
    run = shutil.copytree(family, tmp_path / "run")
    shutil.copytree(trained, run / "trained")  # as `darwinlm train` leaves it beside the checkpoint
    darwinlm.report(run)
    found = page(run)
    assert "training" in found.sections
    assert f"{json.loads((trained / 'summary.json').read_text())['trained']['perplexity']:.2f}" in found.text
    for shown in looked_at([(folder / "report.html").read_text() for folder in (run, trained, member)], tmp_path):
        assert (shown["over"], shown["missing"], shown["empty"]) == (0, 0, 0), shown


def test_a_comparison_alone(checkpoint, text, tmp_path):
    values = {"model": str(checkpoint("llama_gqa")), "data": str(text), **SETTINGS}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "compare").mkdir()
    row = {"title": "DarwinLM", "method": "darwinlm", "level": 2.0, "parameters": 1000, "perplexity": 12.5, "kl": 0.125}
    dense = vars(Quality(2000, 10.0, 0.0))
    whole = {"rows": [row], "cells": [], "budgets": {}, "dense": dense, "train_tokens": 0}
    (tmp_path / "compare/compare.json").write_text(json.dumps(whole))
    darwinlm.report(tmp_path)
    found = page(tmp_path)
    assert "compare" in found.sections
    assert "not yet: database" in found.text
    assert "search" not in found.text.split("Run directory")[0]


@pytest.mark.parametrize("part", ["model", "train", "summary.json"])
def test_a_part_of_a_run_leads_to_the_run(trained, part, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(trained / part)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"darwinlm report {trained}")


def test_a_recipe_leads_to_its_steps(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "1-train")
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(tmp_path)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"darwinlm report {tmp_path / '1-train'}")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["training", "family", "member"])
def test_damaged_files_are_one_message_or_a_page(kind, damage, trained, family, tmp_path, capsys):
    origin = trained if kind == "training" else family
    root = shutil.copytree(origin, tmp_path / "run")
    run = root / "family/1" if kind == "member" else root
    files = [*run.glob("*.json"), *run.glob("*.yaml"), *run.glob("*/*.json*"), *root.glob("database/manifest.json")]
    files = [file for file in files if file.parent.name != "model"]
    assert len(files) >= 3
    for file in files:
        text = file.read_text(encoding="utf-8")
        file.write_text(DAMAGE[damage](text), encoding="utf-8")
        code = 0
        try:
            main(["report", str(run)])
        except SystemExit as exit_:
            code = exit_.code
        told = capsys.readouterr().err
        assert (code, told[:10]) in ((0, ""), (2, "darwinlm: ")), file
        assert file.name in told if code else page(run).sections
        file.write_text(text, encoding="utf-8")
