"""`darwinlm report`: all that lies in a run directory as one HTML file, which needs nothing beside itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from darwinlm.errors import RequestError
from darwinlm.measure.report_others import is_training, training_tiles
from darwinlm.measure.report_parts import Section, told_of
from darwinlm.measure.report_sections import run_sections
from darwinlm.measure.report_tables import percent
from darwinlm.runtime.files import read_json, write_text
from darwinlm.runtime.output import pasted
from darwinlm.runtime.progress import duration
from darwinlm.runtime.rundir import RunDirectory

TEMPLATE = Path(__file__).parent / "report.html.jinja"


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
    write_text(directory.report, render(gather(directory, settings)))
    return directory.report


def _instead(path: Path) -> str:
    """Which folder to give in place of one that holds no run."""
    if steps := sorted(file.parent for file in path.glob("*-*/config.yaml") if (path / "recipe.json").exists()):
        return f"It is a recipe's, and each step has a report: darwinlm report {pasted(steps[-1])}"
    above = [folder for folder in path.absolute().parents if (folder / "config.yaml").exists()]
    if above and path.exists():
        return f"The run that it is a part of does: darwinlm report {pasted(above[0])}"
    return "Give a folder that a command wrote by --output."


def gather(directory: RunDirectory, settings: dict[str, Any]) -> Report:
    """Read a run directory with these settings."""
    with told_of(directory.summary):
        summary = read_json(directory.summary) if directory.summary.exists() else {}
        tiles = (training_tiles if is_training(directory) else _tiles)(summary) if summary else []
        settings = {**settings, **({"target": summary["settings"]["target"]} if "settings" in summary else {})}
    name = Path(str(settings.get("model", ""))).name or directory.path.resolve().name
    done = "trained" if is_training(directory) else "pruned"
    sections = run_sections(directory, settings, summary)
    return Report(f"{name}, {done}", _status(directory), tiles, sections)


def render(report: Report) -> str:
    """The page as HTML; every text is escaped, pictures alone are not."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report=report)


def _status(directory: RunDirectory) -> str:
    there = [stage for stage, exists in _stages(directory) if exists]
    missing = [stage for stage, exists in _stages(directory) if not exists]
    taken = sum(directory.seconds().values())
    parts = [f"There: {', '.join(there) or 'settings alone'}"]
    parts += [f"not yet: {', '.join(missing)}"] if missing else []
    parts += [f"{duration(taken)} of work"] if taken else []
    return f"{'; '.join(parts)}. Run directory: {directory.path}"


def _stages(directory: RunDirectory) -> list[tuple[str, bool]]:
    """What the folder's command makes, and whether it is there."""
    end = [("checkpoint", (directory.model / "config.json").exists()), ("evaluation", directory.summary.exists())]
    if is_training(directory):
        return [("training", directory.summary.exists()), *end]
    folders = [(title, directory.path / name) for title, name in (("family", "family"), ("comparison", "compare"))]
    others = [(title, (folder / f"{folder.name}.json").exists()) for title, folder in folders if folder.is_dir()]
    search = [] if others and not directory.genome.exists() else [("search", directory.genome.exists()), *end]
    return [("database", (directory.database / "manifest.json").exists()), *search, *others]


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str]]:
    dense, pruned = summary["dense"], summary["pruned"]
    tiles = [
        ("parameters left", percent(pruned["parameters"] / dense["parameters"])),
        ("perplexity, dense", f"{dense['perplexity']:.2f}"),
        ("perplexity, pruned", f"{pruned['perplexity']:.2f}"),
        ("KL to dense", f"{pruned['kl']:.4f}"),
    ]
    return [*tiles, ("KL, uniform model", f"{summary['uniform']['kl']:.4f}")] if "uniform" in summary else tiles
