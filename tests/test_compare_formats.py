"""Methods that give modules formats, side by side within the bytes of one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import darwinlm
import pico
from darwinlm.errors import RequestError
from darwinlm.export.formats import MIXED
from darwinlm.export.gguf.file import write_gguf
from darwinlm.models.source import ModelSource

pytest.importorskip("gguf")
METHODS = ("one_format", "then_quantized", "formats_alone", "darwinlm_formats")
SETTINGS: dict[str, Any] = {
    **{key: value for key, value in pico.RUN.items() if key != "target"},
    "search": {"start_rounds": 2, "start_tokens": 256},
    "database": {"levels": 4, "multiple_of": 32},
}
FORMATS = {"formats": "q8_0,q4_0", "embedding_format": "q8_0"}
SMALL, LARGE = 115_000, 140_000
"""Bytes; the dense model in q4_0 has a number between them."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dense")
    return str(pico.make_checkpoint(folder, "llama_gqa", hidden_size=64, intermediate_size=128, head_dim=16))


@pytest.fixture(scope="module")
def compared(dense, text, tmp_path_factory) -> Path:
    """Both sizes, with all models kept; the tables are of the second."""
    output = tmp_path_factory.mktemp("runs") / "compared"
    for size, methods in ((LARGE, METHODS), (SMALL, [name for name in METHODS if name != "formats_alone"])):
        asked = {"levels": size, "methods": methods, "keep_models": True, **FORMATS, **SETTINGS}
        darwinlm.compare(dense, data=str(text), output=str(output), **asked)
    return output


def cells(run: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in run.glob("compare/*/*/pruned.json")]
    return {(cell["method"], int(cell["level"])): cell for cell in found}


def test_every_method_keeps_to_the_bytes_and_its_file_has_them(compared, tmp_path) -> None:
    found = cells(compared)
    assert len(found) == 7
    for (method, size), cell in found.items():
        kept = compared / f"compare/{method}/level{size}_seed0/model"
        write_gguf(ModelSource(str(kept)), file := tmp_path / "model.gguf", MIXED)
        assert file.stat().st_size <= cell["memory"] <= size


def test_each_moves_what_it_may(compared) -> None:
    found = cells(compared)
    for method in ("one_format", "formats_alone"):
        assert not any(found[method, LARGE]["levels"].values())
    for size in (SMALL, LARGE):
        assert len(set(found["then_quantized", size]["formats"].values())) == 1
    for method in ("one_format", "then_quantized", "darwinlm_formats"):
        assert any(found[method, SMALL]["levels"].values())
    for method in ("formats_alone", "darwinlm_formats"):
        assert len(set(found[method, LARGE]["formats"].values())) == 2


def test_where_one_genome_fits_nothing_is_searched(compared, dense, text, tmp_path) -> None:
    shutil.copytree(compared, run := tmp_path / "run")
    asked = {"levels": 126_000, "methods": "formats_alone", **FORMATS, **SETTINGS}
    darwinlm.compare(dense, data=str(text), output=str(run), **asked)
    cell = cells(run)["formats_alone", 126_000]
    assert not any(cell["levels"].values())
    assert set(cell["formats"].values()) == {"q4_0"}
    assert not list((run / "compare/formats_alone/level126000_seed0").rglob("start.json"))
    assert list((run / f"compare/formats_alone/level{LARGE}_seed0").rglob("start.json"))


def test_both_at_once_is_what_the_search_finds(compared, dense, text, tmp_path) -> None:
    target = {"memory": SMALL, "formats": ["q8_0", "q4_0"], "embedding_format": "q8_0", "context": 0}
    asked = {**SETTINGS, "target": target, "refit": {"tokens": 0}}
    run = darwinlm.prune(dense, data=str(text), output=str(tmp_path / "run"), **asked)
    found, cell = json.loads((tmp_path / "run/genome.json").read_text()), cells(compared)["darwinlm_formats", SMALL]
    assert (found["levels"], found["formats"]) == (cell["levels"], cell["formats"])
    assert run.summary["pruned"]["kl"] == pytest.approx(cell["quality"]["kl"], rel=1e-5)


def test_a_search_of_other_settings_within_a_cell_is_refused(compared, dense, text, tmp_path) -> None:
    """Killed behind the search of its first format, and typed again with other settings."""
    shutil.copytree(compared, output := tmp_path / "run")
    (output / f"compare/then_quantized/level{SMALL}_seed0/pruned.json").unlink()
    other = {**SETTINGS, "search": {**SETTINGS["search"], "start_tokens": 128}}
    with pytest.raises(RequestError, match=r"search\.start_tokens"):
        darwinlm.compare(
            dense, data=str(text), output=str(output), levels=SMALL, methods="then_quantized", **FORMATS, **other
        )


def test_tables_and_pictures_count_bytes(compared) -> None:
    told = (compared / "compare/compare.md").read_text()
    assert "At most 115,000 bytes" in told
    assert "| method | bytes | parameters | perplexity | KL to dense | search |\n" in told
    assert (compared / "compare/allocations_level115000.png").exists()
    assert (compared / "compare/tradeoff.png").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": "ziplm"}, "names ziplm; with --formats there are: all, one_format"),
        ({"train_tokens": 64}, "--train_tokens leaves no format as it is"),
        ({"levels": "4 boxes"}, "--levels is '4 boxes', which cannot be read"),
        ({"levels": "1KB"}, "--levels 1KB cannot be met"),
        ({"formats": "q4_0,q9"}, "--formats is"),
        ({"formats": "", "embedding_format": "q8_0"}, "--embedding_format counts with --formats alone"),
        ({"levels": "70KB,30%"}, "formats_alone removes nothing, and the dense model in q4_0 has"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(asked, said, dense, text, tmp_path) -> None:
    with pytest.raises(RequestError, match=said):
        darwinlm.compare(dense, data=str(text), output=str(tmp_path / "run"), **{**FORMATS, **asked}, **SETTINGS)
    assert not (tmp_path / "run/config.yaml").exists()
