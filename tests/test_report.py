"""`darwinlm report`: one page that needs nothing beside itself, for runs finished, begun and oddly named."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import darwinlm
import pico
from chromium import looked_at
from darwinlm.cli import main
from darwinlm.comparison.table import Cell, Comparison, save_comparison
from darwinlm.measure.quality import Quality
from darwinlm.measure.tables import doubts

SETTINGS = {
    "blocks": {"sequence_length": 32, "hessian": 8, "train": 4, "select": 4, "held_out": 4},
    "database": {"levels": 4, "multiple_of": 4},
    "target": {"level": 2},
    "search": {
        "generations": 3,
        "offspring": 3,
        "survivors": [1],
        "train_tokens": [64],
        "select_tokens": [64],
        "learning_rate": 1e-3,
        "check_every": 2,
    },
}


class Page(HTMLParser):
    """What a page is made of: well-formed, or an error."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.sections += [values["id"]] if tag == "section" else []
        self.addresses += [values[key] for key in ("src", "href", "xlink:href") if key in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(checkpoint, text, tmp_path_factory) -> Path:
    """A pruned pico model; read only."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output=str(output), **SETTINGS)
    return output


@pytest.fixture(scope="module")
def bench(finished, checkpoint, tmp_path_factory) -> dict[str, Any]:
    """What `darwinlm bench` found of it."""
    folder = tmp_path_factory.mktemp("bench")
    settings = {"batch_sizes": [1], "context_lengths": [8], "decode_tokens": 2, "repeats": 1}
    darwinlm.bench(str(finished / "model"), against=str(checkpoint("llama_gqa")), output=folder, bench=settings)
    return json.loads((folder / "bench.json").read_text())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_prune_writes_it_with_all_its_parts(finished):
    found = page(finished)
    wanted = "asked quality genome start search refit database time next load settings"
    assert found.sections == wanted.split()
    assert found.tags.count("svg") == 7  # two kinds of modules, levels and errors of each
    assert len(set(found.ids)) == len(found.ids)
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("dense", "uniform", "pruned"):
        assert f"{summary[name]['perplexity']:.2f}" in found.text
        assert f"{summary[name]['parameters']:,}" in found.text
    assert f"{summary['pruned']['kl']:.4f}" in found.text
    for depth, kl in json.loads((finished / "refit/refit.json").read_text())["kl"].items():
        assert f"{depth}: {kl:.4f}" in found.text
    assert f"darwinlm bench {finished / 'model'} --against" in found.text
    assert "from_pretrained(" in found.text
    assert "rel_damp" in found.text


def test_it_needs_nothing_from_elsewhere_and_is_the_same_twice(run):
    main(["report", str(run)])
    once = (run / "report.html").read_bytes()
    found = page(run)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert found.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in found.addresses)
    references = {address[1:] for address in found.addresses if address.startswith("#")}
    assert references <= set(found.ids)
    assert b"url(http" not in once
    assert b"@import" not in once
    darwinlm.report(run)
    assert (run / "report.html").read_bytes() == once


def test_what_was_measured_later_joins_it(run, bench, checkpoint, capsys):
    dense = checkpoint("llama_gqa")
    main(["eval", str(run / "model"), "--against", str(dense)])
    assert "eval.json" in capsys.readouterr().out
    (run / "bench.json").write_text(json.dumps(bench))
    some = Quality(1000, 12.5, 0.125)
    cells = [
        Cell(method, title, 2.0, 0, {"model.layers.0.mlp": 1}, {"model.layers.0.mlp": 0.5}, some, None, 1.0, 0)
        for method, title in (("uniform", "uniform"), ("darwinlm", "DarwinLM"))
    ]
    comparison = Comparison("model", {2.0: 1000}, Quality(2000, 10.0, 0.0), cells, 0)
    save_comparison(comparison, run / "compare")
    main(["report", str(run)])
    found = page(run)
    assert {"eval", "bench", "compare"} <= set(found.sections)
    assert found.tags.count("svg") == 12  # prefill and decode; a comparison, and what is left of two kinds of modules
    assert "darwinlm bench" not in "".join(found.texts).split("What next")[1]
    quality = json.loads((run / "eval.json").read_text())["qualities"]["model"]
    assert f"{quality['perplexity']:.2f}" in found.text
    assert "0.1250" in found.text


@pytest.mark.parametrize("commands", [("build_database",), ("build_database", "search_genome")])
def test_a_run_that_is_not_finished(commands, checkpoint, text, tmp_path):
    settings = {"model": str(checkpoint("llama_gqa")), "data": str(text), "output": str(tmp_path / "run"), **SETTINGS}
    for command in commands:
        getattr(darwinlm, command)(**settings)
    if "search_genome" in commands:  # as a search that is killed while it writes, or still runs
        with (tmp_path / "run/search/history.jsonl").open("a") as lines:
            lines.write('{"generation": 3, "kl": 0.')
        (tmp_path / "run/genome.json").unlink()
    darwinlm.report(tmp_path / "run")
    found = page(tmp_path / "run")
    later = ["start", "search"] if "search_genome" in commands else []
    assert found.sections == ["asked", *later, "database", "time", "next", "settings"]
    assert f"darwinlm prune --output {tmp_path / 'run'}" in found.text
    assert "not yet: search, checkpoint, evaluation" in found.text


def test_names_are_text_and_nothing_else(text, bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "<script>alert('1') & $x_2$"
    pico.make_checkpoint(tmp_path / name, "llama_gqa")
    odd = shutil.copy(text, tmp_path / "<i>text.txt")
    darwinlm.prune(name, data=Path(odd).name, output="a & <b>run", **SETTINGS)
    models = [{**model, "name": name} for model in bench["models"]]
    Path("a & <b>run/bench.json").write_text(json.dumps({**bench, "models": models}))
    darwinlm.report("a & <b>run")
    found = page(Path("a & <b>run"))
    assert not {"script", "i", "b>run"} & set(found.tags)
    assert found.tags.count("b") == 5  # the tiles
    assert f"{name}, pruned" in found.text
    assert "<i>text.txt" in found.text
    assert found.texts.count(name) >= 2  # the bars' labels


def test_what_is_no_run_is_refused(tmp_path, run, capsys):
    for arguments, said in (
        (["report"], "No run is given"),
        (["report", str(tmp_path / "nowhere")], "holds no run"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err
    (run / "bench.json").write_text("{}")
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(run)])
    assert exit_.value.code == 2
    assert "bench.json' is not what this version" in capsys.readouterr().err


def test_a_browser_shows_it_on_a_phone_and_in_the_dark(finished, tmp_path):
    shown = (finished / "report.html").read_text()
    faulty = '<div style="width: 2000px">wide</div><img src="data:image/png;base64,AAAA"><svg width=0></svg>'
    for number, dark in enumerate(((), ("--force-dark-mode", "--blink-settings=preferredColorScheme=0"))):
        (folder := tmp_path / str(number)).mkdir()
        *good, bad, _ = looked_at([shown, faulty], folder, *dark)
        assert bad["over"] > 1000  # or nothing would be noticed
        assert (bad["missing"], bad["empty"]) == (1, 1)
        for found in good:
            assert (found["over"], found["missing"], found["empty"]) == (0, 0, 0), found
            assert found["paper"] == ("rgb(20, 22, 26)" if dark else "rgb(251, 251, 250)")


def test_it_follows_the_readers_choice_of_light_and_dark(finished):
    text = (finished / "report.html").read_text()
    assert "prefers-color-scheme: dark" in text
    assert "#010203" not in text
    assert text.count("currentColor") > 20


@pytest.mark.parametrize(
    ("kl", "told"),
    [
        ({"uniform": 0.5, "before_refit": 0.3, "pruned": 0.2}, []),
        ({"uniform": 0.5, "pruned": 0.3}, []),
        ({"uniform": 0.2, "pruned": 0.3}, ["uniform"]),
        ({"uniform": 0.5, "before_refit": 0.2, "pruned": 0.3}, ["refit"]),
        ({"uniform": 0.1, "before_refit": 0.2, "pruned": 0.3}, ["uniform", "refit"]),
    ],
)
def test_what_held_out_text_says_against_a_run_is_said(kl, told) -> None:
    found = doubts({name: {"kl": value} for name, value in {"dense": 0.0, **kl}.items()})
    assert [next(word for word in ("uniform", "refit") if word in text) for text in found] == told
