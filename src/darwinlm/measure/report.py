"""`darwinlm report`: all that lies in a run directory as one HTML file, which needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from darwinlm.errors import RequestError
from darwinlm.measure.report_sections import Contents, Section, result_sections, told_of
from darwinlm.measure.tables import percent
from darwinlm.runtime.files import read_json, write_text
from darwinlm.runtime.output import pasted
from darwinlm.runtime.progress import duration
from darwinlm.runtime.rundir import RunDirectory

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r}{trust})
tokenizer = AutoTokenizer.from_pretrained({folder!r}{trust})
"""
_FURTHER = "Scores on other text, speed, what training wins back, a file for llama.cpp and Ollama."


@dataclass(frozen=True)
class Report:
    """The page, before it is HTML."""

    title: str
    status: str
    """How far the run has come."""
    tiles: list[tuple[str, str]]
    """The numbers at the top: name and value."""
    sections: list[Section]


def write_report(path: Path) -> Path:
    """Write `report.html` of a run directory, finished or not; returns its path.

    Raises:
        RequestError: there is no run.
        DamagedFileError: a file of the run is damaged.
    """
    directory = RunDirectory(path)
    family = RunDirectory(path.absolute().parent.parent)
    if directory.config.exists():
        settings = directory.settings()
    elif path.absolute().parent.name == "family" and family.config.exists() and path.is_dir():
        directory.database, settings = family.database, family.settings()  # shared by the models of a family
    else:
        raise RequestError(f"'{path}' holds no run (no config.yaml). {_instead(path)}")
    summary = read_json(directory.summary) if directory.summary.exists() else {}
    with told_of(directory.summary):
        settings |= {"target": summary["settings"]["target"]} if "settings" in summary else {}
    write_text(directory.report, _html(_gathered(Contents(directory, settings, summary))))
    return directory.report


def _instead(path: Path) -> str:
    """Which folder to give in place of one that holds no run."""
    if steps := sorted(file.parent for file in path.glob("*-*/config.yaml") if (path / "recipe.json").exists()):
        return f"It is a recipe's, and each step has a report: darwinlm report {pasted(steps[-1])}"
    above = [folder for folder in path.absolute().parents if (folder / "config.yaml").exists()]
    if above and path.exists():
        return f"The run that it is a part of does: darwinlm report {pasted(above[0])}"
    return "Give a folder that a command wrote by --output."


def _gathered(found: Contents) -> Report:
    directory, settings = found.directory, found.settings
    with told_of(directory.summary):
        tiles = list(_tiles(found))
    name = Path(str(settings.get("model", ""))).name or directory.path.resolve().name
    with told_of(directory.config):
        after = [*_next(found), *_load(directory)]
    sections = [*result_sections(found), *after]
    code = yaml.safe_dump(settings, sort_keys=False)
    sections.append(Section("settings", "Settings", code=code, folded="config.yaml, complete"))
    return Report(f"{name}, {'trained' if found.is_training else 'pruned'}", _status(found), tiles, sections)


def _html(report: Report) -> str:
    """Every text is escaped, pictures alone are not."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(report=report)


def _tiles(found: Contents) -> Iterator[tuple[str, str]]:
    summary = found.summary
    if not summary:
        return
    if found.is_training:
        yield "tokens", f"{summary['tokens']:,}"
        yield "perplexity, before", f"{summary['before']['perplexity']:.2f}"
        yield "perplexity, after", f"{summary['trained']['perplexity']:.2f}"
        if summary["trained"].get("kl") is not None:
            yield "KL to teacher", f"{summary['trained']['kl']:.4f}"
        return
    dense, pruned = summary["dense"], summary["pruned"]
    yield "parameters left", percent(pruned["parameters"] / dense["parameters"])
    yield "perplexity, dense", f"{dense['perplexity']:.2f}"
    yield "perplexity, pruned", f"{pruned['perplexity']:.2f}"
    yield "KL to dense", f"{pruned['kl']:.4f}"
    if "uniform" in summary:
        yield "KL, uniform model", f"{summary['uniform']['kl']:.4f}"


def _status(found: Contents) -> str:
    there = [stage for stage, exists in _stages(found) if exists]
    missing = [stage for stage, exists in _stages(found) if not exists]
    with told_of(found.directory.timings.file):
        taken = sum(found.directory.timings.seconds().values())
    parts = [f"There: {', '.join(there) or 'settings alone'}"]
    parts += [f"not yet: {', '.join(missing)}"] if missing else []
    parts += [f"{duration(taken)} of work"] if taken else []
    return f"{'; '.join(parts)}. Run directory: {found.directory.path}"


def _stages(found: Contents) -> list[tuple[str, bool]]:
    """What the folder's command makes, and whether it is there."""
    directory = found.directory
    end = [("checkpoint", (directory.model / "config.json").exists()), ("evaluation", directory.summary.exists())]
    if found.is_training:
        return [("training", directory.summary.exists()), *end]
    folders = [(title, directory.path / name) for title, name in (("family", "family"), ("comparison", "compare"))]
    others = [(title, (folder / f"{folder.name}.json").exists()) for title, folder in folders if folder.is_dir()]
    search = [] if others and not directory.genome.exists() else [("search", directory.genome.exists()), *end]
    return [("database", (directory.database / "manifest.json").exists()), *search, *others]


def _next(found: Contents) -> Iterator[Section]:
    """The commands that go on from here."""
    path, title = found.directory.path, "To continue"
    text, lines = "Type the command that began this again: it goes on where it was.", list[tuple[Any, ...]]()
    if all(exists for _, exists in _stages(found)):
        if not (found.directory.model / "config.json").exists():  # a family, a comparison
            return
        title, text, lines = "What next", _FURTHER, list(_further(found))
    elif found.directory.config.exists() and not any((path / other).is_dir() for other in ("family", "compare")):
        text, lines = "It goes on where it was.", [("train" if found.is_training else "prune", "--output", path)]
    yield Section("next", title, text, code="\n".join(pasted("darwinlm", *line) for line in lines))


def _further(found: Contents) -> Iterator[tuple[Any, ...]]:
    """What can be done with the checkpoint, the trained one where there is one, and has not been."""
    path, settings = found.directory.path, found.settings
    place = path / "trained" if (path / "trained/model").is_dir() else path
    dense = settings["train"]["teacher"] if found.is_training else settings["model"]
    against = ("--against", dense) if dense else ()
    if not (place / "eval.json").exists():
        yield "eval", place / "model", *against, "--data", "OTHER_TEXT"
    if not (place / "bench.json").exists():
        yield "bench", place / "model", *against
    if place == path and not found.is_training:
        yield "train", place / "model", "--data", settings["data"], "--tokens", "50M", "--teacher", dense
    if not (place / "model-gguf").exists():
        yield "export", place / "model", "--format", "gguf", "--dtype", "q8_0"


def _load(directory: RunDirectory) -> Iterator[Section]:
    if not (directory.model / "config.json").exists():
        return
    own = (directory.model / "modeling_darwinlm.py").exists()  # layers of one shape are stock code
    code = _LOAD.format(folder=str(directory.model), trust=", trust_remote_code=True" * own)
    text = f"The folder loads with transformers alone{'; it ships one modeling file' * own}."
    if beside := sorted(directory.path.glob("model-*")):
        text += f" Beside it: {', '.join(form.name for form in beside)}."
    yield Section("load", "How to load it", text, code=code)
