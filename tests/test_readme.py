"""What the README tells people to type is understood as it stands, and the files that it names are there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from darwinlm.cli import COMMANDS, main, read
from darwinlm.config import preset_values, resolve
from darwinlm.run.demonstration import DEMO_MODEL

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("**/*.md"))}


def blocks(language: str, text: str) -> list[str]:
    """The code of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


TYPED = {
    " ".join(line.split()): None
    for page in (README, *(PAGES[name] for name in PAGES if name in ("index.md", "tutorial.md") or "howto" in name))
    for block in blocks("bash", page)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("darwinlm ")
}


def understood(name: str, arguments: list[str]) -> dict[str, Any]:
    """What a command is called with, after its settings were checked."""
    given = read(name, arguments).arguments
    settings = {key: value for key, value in given.items() if key in COMMANDS[name].groups}
    layers = [preset_values(preset)] if (preset := given.get("preset")) else []
    resolve(*layers, settings)
    return given


@pytest.mark.parametrize("line", TYPED)
def test_commands_are_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(line.split(" > ")[0], comments=True)
    if name == "help" or "--help-all" in arguments:
        main([name, *arguments])
        return
    given = understood(name, arguments)
    assert name in ("demo", "schema") or any(
        given.get(one) for one in ("model", "output", "source", "run", "file", "recipe")
    )


def test_the_code_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    """With the embedded model in the place of what its commands make."""
    monkeypatch.chdir(tmp_path)
    for model in map(Path, ("runs/smol/model", "HuggingFaceTB/SmolLM2-135M")):
        model.parent.mkdir(parents=True)
        model.symlink_to(DEMO_MODEL)
    Path("runs/smol/genome.json").write_text('{"levels": {"model.layers.0.mlp": 3}}')
    for code in blocks("python", PAGES["tutorial.md"]):
        exec(compile(code, "tutorial.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "model.layers.0.mlp" in printed
    assert "The three states of matter are" in printed


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    """With less text and one round."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells[1:])
    assert len(json.dumps(notebook)) < 50_000
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "tutorial.ipynb", "exec"), names)
        names["settings"] = {
            "blocks": {
                "sequence_length": 64,
                "hessian": 8,
                "train": 4,
                "select": 4,
                "held_out": 4,
                "pool_tokens": 40_000,
            },
            "search": {"start_tokens": 256, "start_rounds": 1},
            "refit": {"tokens": 512},
        }
    assert Path("runs/notebook/report.html").exists()
    assert capsys.readouterr().out.count("class Reader:") == 2
    names["plt"].close("all")


def test_links_of_the_pages_lead_somewhere():
    for name, page in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page):
            assert ((DOCS / name).parent / target).exists(), (name, target)


def test_every_command_is_shown():
    for name in COMMANDS:
        assert f"`darwinlm {name}" in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
