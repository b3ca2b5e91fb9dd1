"""pep-llama of the shared folder, its texts, and the settings that the authors' public code was measured with on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darwinlm.config import read_yaml

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
"""The folder with the model and the texts, beside this repository."""


def is_there(shared: Path) -> bool:
    """Whether the model is in `shared`; says so where it is not."""
    found = (shared / "models/pep-llama").is_dir()
    if not found:
        print(f"skipped: '{shared}' has no models/pep-llama")
    return found


def model(shared: Path) -> str:
    return str(shared / "models/pep-llama")


def text(shared: Path) -> str:
    return str(shared / "text/peps-train.txt")


def held_out_text(shared: Path) -> str:
    return str(shared / "text/peps-valid.txt")


def reference_settings(shared: Path) -> dict[str, Any]:
    """Model, data and settings of recipes/pep_llama_reference.yaml, as `darwinlm.prune` takes them; a new dictionary."""
    settings = read_yaml(ROOT / "recipes/pep_llama_reference.yaml")
    settings["blocks"]["held_out_data"] = held_out_text(shared)
    return {"model": model(shared), "data": text(shared), **settings}
