"""What each command asks of a run, opened: stages in their order, database -> search -> refit -> export -> evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darwinlm.config import RunConfig
from darwinlm.cost import database_need, refit_need, rounding_need, search_need
from darwinlm.database.rounded import RoundedLevels
from darwinlm.database.store import MANIFEST, Database, damaged_files
from darwinlm.errors import RequestError
from darwinlm.export.forms import Form, Wanted, check_forms, checkpoint_in, write_forms
from darwinlm.export.text import some_text
from darwinlm.measure.pictures import draw_errors
from darwinlm.refit.store import Refits
from darwinlm.run.request import opened
from darwinlm.run.results import evaluation_stage, report_stage
from darwinlm.run.stages import database_stage, export_stage, refit_stage, refitted, search_stage
from darwinlm.runtime import ranks
from darwinlm.runtime.device import choose_device
from darwinlm.runtime.output import pasted
from darwinlm.runtime.rundir import RunDirectory


def run_database(config: RunConfig, *, rebuild: bool = False) -> Database:
    """Build the level database of a run."""
    with opened(config, needs=[database_need]) as run:
        return database_stage(run, rebuild=rebuild)


def check_database(config: RunConfig, *, draw: bool = False) -> tuple[Database, Path | None]:
    """The database of a run, after all its files were found whole; the picture of its errors where that is asked.

    Raises:
        RequestError: there is none, or files are damaged; names them.
    """
    folder = RunDirectory(config.path).database
    if not config.output or not (folder / MANIFEST).exists():
        raise RequestError(f"'{config.output}' holds no database. Give the run directory with --output.")
    database = Database.open(folder)
    if damaged := database.damaged(thorough=True):
        raise damaged_files(database, damaged)
    RoundedLevels(database).require_whole()
    if not draw:
        return database, None
    picture = folder / "errors.png"
    draw_errors(database, picture)
    return database, picture


def run_search(config: RunConfig, *, restart: bool = False) -> dict[str, int]:
    """Search on a finished database; returns {module name: level}."""
    _require_database(config)
    with opened(config, restart=restart, needs=[rounding_need, search_need]) as run:
        return run.space.levels_of(search_stage(run, run.finished_database(), restart=restart))


def _require_database(config: RunConfig) -> None:
    """Before anything is read or made: later stages stand on a database."""
    if not config.output:
        raise RequestError("No run is given: the folder that `darwinlm prune` or `darwinlm database` wrote.")
    if not (RunDirectory(config.path).database / MANIFEST).exists():
        raise RequestError(
            f"'{config.output}' holds no database yet. Run `darwinlm database MODEL --data DATA --output "
            f"{pasted(config.output)}` first."
        )


def run_refit(config: RunConfig) -> Refits:
    """Refit the genome that a search ended with; returns what was refitted.

    Raises:
        RequestError: there is no genome yet, or `refit.tokens` is 0.
    """
    _require_database(config)
    with opened(config, needs=[refit_need]) as run:
        refits = refitted(run, run.finished_database(), run.genome())
        if refits is None:
            raise RequestError(
                "refit.tokens is 0, so there is nothing to do. Give --refit.tokens 131072, or leave it out."
            )
        return refits


def run_export(config: RunConfig, wanted: Wanted | None = None, *, again: bool = False) -> list[Form]:
    """Write the checkpoint of a finished search, and the other forms of it that are asked for. One rank does it all.

    Args:
        config: a run directory; or, without one, `model` is a finished checkpoint that gets other forms.
        wanted: the other forms.
        again: a finished checkpoint needs no other form.

    Returns:
        The forms, the canonical checkpoint first.
    """
    wanted = wanted or Wanted()
    if config.model and not config.output:
        source = checkpoint_in(folder := Path(config.model).expanduser())
        if not wanted and not again:
            raise RequestError(
                f"Nothing is asked for '{config.model}': add --portable, --format gguf, --format compressed-tensors or "
                "--push USER/NAME."
            )
        check_forms(source, wanted)
        text = some_text(config, source) if wanted.needs_text and config.data else None
        return write_forms(folder, wanted, config.database.tensor_parallel, text, choose_device(config.device))
    _require_database(config)
    with opened(config) as run:
        check_forms(run.source, wanted)
        database, genome = run.finished_database(), run.genome()
        refits = refit_stage(run, database, genome)
        if not ranks.is_first():
            return []
        export_stage(run, database, genome, refits)
        parallel, text = config.database.tensor_parallel, run.splits.hessian
        return write_forms(run.directory.model, wanted, parallel, text, run.device)


def run_prune(config: RunConfig, *, rebuild: bool = False, restart: bool = False) -> dict[str, Any]:
    """All stages; returns what `summary.json` holds. Ranks other than the first leave after the refit, with nothing."""
    with opened(config, restart=restart, needs=[database_need, rounding_need, search_need, refit_need]) as run:
        database = database_stage(run, rebuild=rebuild)
        genome = search_stage(run, database, restart=restart)
        refits = refit_stage(run, database, genome)
        if not ranks.is_first():
            return {}
        export_stage(run, database, genome, refits)
        summary = evaluation_stage(run, database, genome, refits)
        report_stage(run)
        return summary
