"""`darwinlm report`: all that lies in a run directory as one HTML file, which needs nothing beside itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from darwinlm.errors import RequestError
from darwinlm.measure.report_sections import Section, run_sections
from darwinlm.measure.report_tables import percent
from darwinlm.runtime.files import read_json, write_text
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
    if not directory.config.exists():
        raise RequestError(f"'{path}' holds no run (no config.yaml). Give a folder that a command wrote by --output.")
    write_text(directory.report, render(gather(directory)))
    return directory.report


def gather(directory: RunDirectory) -> Report:
    """Read a run directory."""
    settings = directory.settings()
    name = Path(str(settings.get("model", ""))).name or directory.path.resolve().name
    summary = read_json(directory.summary) if directory.summary.exists() else {}
    return Report(f"{name}, pruned", _status(directory), _tiles(summary), run_sections(directory, settings, summary))


def render(report: Report) -> str:
    """The page as HTML; every text is escaped, pictures alone are not."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report=report)


def _status(directory: RunDirectory) -> str:
    done = [
        ("database", (directory.database / "manifest.json").exists()),
        ("search", directory.genome.exists()),
        ("checkpoint", (directory.model / "config.json").exists()),
        ("evaluation", directory.summary.exists()),
    ]
    there = [stage for stage, exists in done if exists]
    missing = [stage for stage, exists in done if not exists]
    taken = sum(directory.seconds().values())
    parts = [f"There: {', '.join(there) or 'settings alone'}"]
    parts += [f"not yet: {', '.join(missing)}"] if missing else []
    parts += [f"{duration(taken)} of work"] if taken else []
    return f"{'; '.join(parts)}. Run directory: {directory.path}"


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if not summary:
        return []
    dense, pruned = summary["dense"], summary["pruned"]
    tiles = [
        ("parameters left", percent(pruned["parameters"] / dense["parameters"])),
        ("perplexity, dense", f"{dense['perplexity']:.2f}"),
        ("perplexity, pruned", f"{pruned['perplexity']:.2f}"),
        ("KL to dense", f"{pruned['kl']:.4f}"),
    ]
    return [*tiles, ("KL, uniform model", f"{summary['uniform']['kl']:.4f}")] if "uniform" in summary else tiles
