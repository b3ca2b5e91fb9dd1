"""The report's sections, each from its own files of a run directory; those whose files are not there yet are left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from darwinlm.database.store import MANIFEST, Database
from darwinlm.measure.bench_picture import bench_figure
from darwinlm.measure.pictures import errors_figure
from darwinlm.measure.report_others import family_sections, is_training, training_sections
from darwinlm.measure.report_parts import Section, image, told_of
from darwinlm.measure.report_pictures import as_svg, genome_figure, search_figure
from darwinlm.measure.report_tables import (
    Table,
    asked_table,
    bench_tables,
    changes_table,
    comparison_table,
    history,
    quality_table,
    seconds_table,
    task_tables,
)
from darwinlm.models.family import place_of
from darwinlm.models.sites import KINDS, Kind
from darwinlm.runtime.files import read_json
from darwinlm.runtime.rundir import RunDirectory

_LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({folder!r})
"""
_LABELS = {"dense": "dense", "uniform": "uniform, same level", "before_refit": "before its refit", "pruned": "DarwinLM"}


def run_sections(directory: RunDirectory, settings: dict[str, Any], summary: dict[str, Any]) -> list[Section]:
    """All sections that a run has the files for.

    Args:
        directory: the run.
        settings: its `config.yaml`.
        summary: its `summary.json`; empty where there is none yet.
    """
    if is_training(directory):
        found = list(training_sections(directory, settings, summary))
    else:
        found = _of_a_search(directory, settings, summary)
        found += family_sections(directory.path)
    found += _measured(directory.path)
    found += _compared(directory.path)
    with told_of(directory.timings):
        if seconds := directory.seconds():
            found.append(Section("time", "Time", tables=[seconds_table(seconds)]))
    found += _load(directory)
    code = yaml.safe_dump(settings, sort_keys=False)
    found.append(Section("settings", "Settings", code=code, fold_code="config.yaml, complete"))
    return found


def _of_a_search(directory: RunDirectory, settings: dict[str, Any], summary: dict[str, Any]) -> list[Section]:
    with told_of(directory.database / MANIFEST):
        exists = (directory.database / MANIFEST).exists()
        database = Database.open(directory.database) if exists else None
    with told_of(directory.config):
        asked_table(settings, {}, {})
    with told_of(directory.summary):
        found = [Section("asked", "Asked and got", tables=[asked_table(settings, summary, {})])]
        if summary:
            rows = {label: summary[name] for name, label in _LABELS.items() if name in summary}
            text = "On held-out text. The uniform model takes the same share from every module."
            found.append(Section("quality", "Quality", text, tables=[quality_table(rows, ours=("DarwinLM",))]))
    with told_of(directory.genome):
        genome = read_json(directory.genome) if directory.genome.exists() else {}
        found[0].tables[:] = [asked_table(settings, summary, genome)]
        found += _genome(genome, database, settings)
    with told_of(directory.search / "history.jsonl"):
        found += _search(directory)
    with told_of(directory.database / MANIFEST):
        found += _errors(database)
    return found


def _genome(genome: dict[str, Any], database: Database | None, settings: dict[str, Any]) -> Iterator[Section]:
    if not genome:
        return
    steps = settings["database"]["levels"]
    ladders: dict[str, int] = {ladder.name: ladder.top for ladder in database.ladders()} if database else {}
    levels: dict[str, int] = genome["levels"]
    tops = {name: ladders[name] if name in ladders else max(steps, level) for name, level in levels.items()}
    target = settings["target"].get("level") or sum(levels.values()) / sum(tops.values()) * steps
    picture = as_svg("genome", genome_figure, levels, tops, target / steps)
    text = "What is left of each module; a cross is a module that is gone, the dashed line the uniform model."
    layers: dict[int, dict[Kind, str]] = {}
    for name, level in levels.items():
        layer, kind = place_of(name)
        layers.setdefault(layer, {})[kind] = f"{level} of {tops[name]}"
    rows = [[str(layer), *(here.get(kind, "-") for kind in KINDS)] for layer, here in layers.items()]
    table = Table(rows, ["layer", "attention level", "MLP level"], folded="Levels of all modules")
    yield Section("genome", "The genome", text, [Markup(picture)], [table])


def _search(directory: RunDirectory) -> Iterator[Section]:
    lines = history(directory.search / "history.jsonl")
    if not lines:
        return
    wins = sum(line["improved"] for line in lines)
    text = f"{len(lines)} generations, {wins} with a new parent. KL in each generation is measured anew, so it moves a little."
    first = directory.search / "start.json"
    picture = as_svg("search", search_figure, lines, read_json(first) if first.exists() else {})
    yield Section("search", "The search", text, [Markup(picture)], [changes_table(lines)])


def _errors(database: Database | None) -> Iterator[Section]:
    if database is None or not database.modules:
        return
    text = f"Relative error of each module's output at each level, on the calibration text; {len(database.modules)} modules."
    yield Section("database", "The database", text, [Markup(as_svg("errors", errors_figure, database))])


def _measured(path: Path) -> Iterator[Section]:
    for name, make in (("eval", _evaluated), ("bench", _benched)):
        for file in (path / f"{name}.json", path / name / f"{name}.json"):
            if file.exists():
                with told_of(file):
                    section = make(read_json(file))
                yield section
                break


def _evaluated(values: dict[str, Any]) -> Section:
    tables = [quality_table(values["qualities"], values["text"])] if values["qualities"] else []
    tables += task_tables(values["tasks"]) if values["tasks"] else []
    return Section("eval", "Evaluation", "By darwinlm eval.", tables=tables)


def _benched(result: dict[str, Any]) -> Section:
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    picture = Markup(as_svg("bench", bench_figure, result))
    text = f"By darwinlm bench, models in turn: {machine}."
    return Section("bench", "Speed and memory", text, [picture], bench_tables(result))


def _compared(path: Path) -> Iterator[Section]:
    folder = path / "compare"
    if not (folder / "compare.json").exists():
        return
    drawn = [folder / "tradeoff.png", *sorted(folder.glob("allocations_level*.png"))]
    pictures = [image(file) for file in drawn if file.exists()]

    def section(values: dict[str, Any]) -> Section:
        text = f"By darwinlm compare. Dense: perplexity {values['dense']['perplexity']:.2f}."
        return Section("compare", "Methods side by side", text, pictures, [comparison_table(values)])

    with told_of(folder / "compare.json"):
        found = section(read_json(folder / "compare.json"))
    yield found


def _load(directory: RunDirectory) -> Iterator[Section]:
    if not (directory.model / "config.json").exists():
        return
    beside = sorted(directory.path.glob("model-*"))
    code, text = _LOAD.format(folder=str(directory.model)), "The folder loads with transformers alone"
    if (directory.model / "modeling_darwinlm.py").exists():
        text += "; it ships one modeling file."
    else:  # layers of one shape are stock code
        code, text = code.replace(", trust_remote_code=True", ""), f"{text}."
    if beside:
        text += f" Beside it: {', '.join(form.name for form in beside)}."
    yield Section("load", "How to load it", text, code=code)
