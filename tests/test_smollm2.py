"""The experiment of recipes/smollm2: every command of every step is understood, and the page needs no result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import darwinlm
from test_readme import understood

FOLDER = Path(__file__).parent.parent / "recipes/smollm2"


@pytest.fixture
def recipe(monkeypatch):
    """The experiment's own modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import experiment
    import steps

    yield experiment, steps
    for name in ("experiment", "steps"):
        sys.modules.pop(name)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Settings on the embedded model."""
    values = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    values["model"] = {"folder": str(Path(darwinlm.__file__).parent / "demo_model")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "tiny.yaml"


def test_every_command_is_understood(recipe, tiny, tmp_path):
    experiment, steps = recipe
    e = experiment.read_experiment(tmp_path / "out", tmp_path, tmp_path, tiny)
    e.output.mkdir()
    e.dense.symlink_to(e.values["model"]["folder"])
    budgets = {level: 3_000_000 + place for place, level in enumerate(e.levels.values())}
    (e.compared / "compare").mkdir(parents=True)
    (e.compared / "compare/compare.json").write_text(json.dumps({"budgets": budgets}))
    for model in e.models():
        Path(model["folder"]).mkdir(parents=True)
        (Path(model["folder"]) / "config.json").touch()
    names, typed = [], []
    for step in steps.steps(e):
        names.append(step.name)
        typed += [(step.name, command) for command in step.commands()]
    assert names[:3] == ["model", "database", "compare-uniform"]
    assert len(set(names)) == len(names)
    assert e.budget(60) == 3_000_001
    for name, (program, *command) in typed:
        assert program == sys.executable
        if command[0] == "-m":
            given = understood(command[2], command[3:])
            assert given.get("model") or given["source"], name
        else:
            assert Path(command[0]).exists()
    models = list(e.models())
    (scored,) = (command for name, command in typed if name == "tasks")
    assert all(model["folder"] in " ".join(scored) for model in models)
    assert len(models) == 2 * (5 + 2) + 3


def test_without_texts_steps_are_left_out_and_the_page_says_so(tmp_path):
    command = [
        sys.executable,
        str(FOLDER / "run.py"),
        "--output",
        str(tmp_path / "out"),
        "--texts",
        str(tmp_path / "gone"),
    ]
    command += ["--only", "database", "--page", str(tmp_path / "docs/page.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "database: left out, there is no" in done.stdout
    assert "There are no results yet." in (tmp_path / "docs/page.md").read_text()
