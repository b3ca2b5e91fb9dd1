"""What the README tells people to type is understood as it stands, and the files that it names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from darwinlm.cli import COMMANDS, read
from darwinlm.config import preset_values, resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("darwinlm ")
]


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
    _, name, *arguments = shlex.split(line, comments=True)
    given = understood(name, arguments)
    assert any(given.get(name) for name in ("model", "output", "source", "run", "file", "recipe"))


def test_every_command_is_shown():
    for name in COMMANDS:
        assert f"`darwinlm {name}" in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
