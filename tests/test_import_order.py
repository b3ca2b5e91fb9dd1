"""The rooms of the package stand in one order, and each imports only from rooms before it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import darwinlm

ROOT = Path(darwinlm.__file__).parent
ORDER = (
    "errors, keywords, version | config | runtime | formats | models | data, losses | database | genome | assemble, cost"
    " | rounding, refit | target | search | export, serving | foreign | recovery | measure | run | comparison | show | cli"
)
RANKS = {room: rank for rank, group in enumerate(ORDER.split(" | ")) for room in group.split(", ")}
ABOVE_ALL = ("__init__", "__main__", "demo")
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.py")
    if path.parent != ROOT or path.stem not in ABOVE_ALL
)
NAMES = r"\b(?:[qkvo]_proj|gate_proj|up_proj|down_proj|self_attn|embed_tokens|lm_head|model\.(?:layers|norm)\b|\w+_layernorm)\b"


def room_of(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Dotted names of all that a module imports, at its top or within a function."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("darwinlm.")}


def strings(module: str) -> Iterator[str]:
    """The string constants that are no docstrings."""
    prose = {id(node.value) for node in ast.walk(parsed(module)) if isinstance(node, ast.Expr)}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_before_it(module: str) -> None:
    room = room_of(module)
    assert room in RANKS, f"'{room}' has no place in the order"
    late = {other for other in rooms_imported(module) if other != room and RANKS.get(other, len(RANKS)) >= RANKS[room]}
    assert not late


def test_no_circle_of_files() -> None:
    """Imports within functions count, too."""
    files = {f"darwinlm.{module[:-3].replace('/', '.')}".removesuffix(".__init__"): module for module in MODULES}
    below = {file: {near for name in imports(files[file]) if (near := file_of(name, files))} - {file} for file in files}
    TopologicalSorter(below).prepare()


def file_of(name: str, files: Collection[str]) -> str:
    """The file that a dotted name is, or is defined in; empty for other packages."""
    return next((file for file in (name, name.rpartition(".")[0]) if file in files), "")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("config/settings.py", {"config"}),
        ("config/training.py", set()),
        ("config/checks.py", {"config"}),
        ("config/reading.py", {"config", "errors"}),
        ("config/described.py", {"config"}),
        ("database/columns.py", {"errors"}),
        ("database/obs.py", {"errors", "database"}),
        ("models/modeling_darwinlm.py", set()),
        ("serving/vllm_plugin.py", set()),
        ("serving/vllm_model.py", set()),
    ],
)
def test_what_must_stand_alone_does(module: str, allowed: set[str]) -> None:
    assert rooms_imported(module) <= allowed


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) not in ("models", "serving")])
def test_only_models_knows_architectures(module: str) -> None:
    classes = [n for n in imports(module) if re.match(r"transformers\.(models\b|\w*(Model|ForCausalLM)$)", n)]
    attributes = [node.attr for node in ast.walk(parsed(module)) if isinstance(node, ast.Attribute)]
    assert not classes
    assert not [text for text in (*strings(module), *attributes) if re.search(NAMES, text)]


def test_no_file_is_a_drawer_for_everything() -> None:
    assert not [module for module in MODULES if re.search(r"util|helper|misc|common", module)]


def test_no_twin_of_a_command_shares_its_name_with_a_room() -> None:
    """Importing such a room would put it in the function's place."""
    assert not set(darwinlm.__all__) & set(RANKS)
