"""Measurements are run by hand, and seldom: what they take from the package must be there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("program", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_it_can_be_imported(program: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(f"program_{program.stem}", program)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] in ("xllamacpp", "gguf", "vllm"):
            pytest.skip(f"{fault.name} is not installed")
        raise
