"""Code that ships with a checkpoint is never run, whatever a run directory, a recipe or a flag asks for."""

from __future__ import annotations

import json

import pytest
import yaml

import pico
from darwinlm.cli.entry import main
from darwinlm.config import resolve
from darwinlm.errors import RequestError
from darwinlm.run.recipe import read_recipe


@pytest.fixture
def with_code(tmp_path):
    """A checkpoint whose configuration and tokenizer name code of their own; run, it leaves a mark."""
    folder = pico.make_checkpoint(tmp_path / "model", "llama_gqa")
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass C: pass\n")
    for name, auto in (("config.json", {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.C"}),
                       ("tokenizer_config.json", {"AutoTokenizer": ["mine.C", "mine.C"]})):  # fmt: skip
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "auto_map": auto}))
    return folder


@pytest.mark.parametrize("asked", [True, False, None])
def test_a_run_directory_brings_no_code(with_code, tmp_path, capsys, asked):
    run = tmp_path / "run"
    run.mkdir()
    settings = {"model": str(with_code), **({} if asked is None else {"trust_remote_code": asked})}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["database", "--output", str(run), "--data", str(tmp_path / "absent.txt")]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert ("never run" in told) is bool(asked)
    assert ("absent.txt" in told) is not asked
    assert not (tmp_path / "mark").exists()


def test_neither_recipe_nor_settings_ask_for_code(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: m\ndata: d\nsettings: {trust_remote_code: true}\nsteps: [prune]\n")
    with pytest.raises(RequestError, match="never run"):
        read_recipe(str(recipe)).resolved()
    with pytest.raises(RequestError, match="never run"):
        resolve({"model": "m", "trust_remote_code": True})
    assert resolve({"model": "m", "trust_remote_code": False}).model == "m"
