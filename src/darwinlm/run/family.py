"""A family of models in one search: each smaller one keeps a part of what the next larger one keeps.

They share the dense model, the text and the database; each search begins at the larger model's result and goes on from
there, with no module ever back toward dense. Under a run directory:

family/TARGET/search, genome.json, model/, summary.json    one member, as in a run of its own
family/family.json, family.png                             all of them: quality against size
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from darwinlm.config import RunConfig, TargetConfig
from darwinlm.config.quantities import Unit, quantity
from darwinlm.cost import database_need, refit_need, rounding_need, search_need
from darwinlm.errors import RequestError
from darwinlm.genome import Genome
from darwinlm.measure.pictures import draw_family
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run, opened
from darwinlm.run.results import evaluation_stage
from darwinlm.run.stages import database_stage, export_stage, refit_stage, search_stage
from darwinlm.runtime import ranks
from darwinlm.runtime.files import write_json
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import RunDirectory

_GROWING = ("level", "speedup")
"""Targets of which more is a smaller model."""


@dataclass(frozen=True)
class Member:
    """One model of a family."""

    name: str
    """As it was typed."""
    folder: Path
    levels: dict[str, int]
    summary: dict[str, Any]
    """As in `summary.json`; empty on other ranks than the first."""


class _MemberDirectory(RunDirectory):
    """A member's folder; token blocks and database are the family's."""

    def __init__(self, family: RunDirectory, name: str) -> None:
        super().__init__(family.path / "family" / name.replace("%", "pct"))
        self.blocks, self.database = family.blocks, family.database


def family_targets(config: RunConfig, typed: str) -> dict[str, TargetConfig]:
    """The targets of a family, largest model first.

    Args:
        config: workload, context and the like stand in its target.
        typed: quantities of one kind with commas: `3B,4B` or `40%,60%` (parameters), `6GB,8GB` (memory), `1.5x,2x`
            (speed-up), or levels such as `4,5,6`.

    Raises:
        RequestError: they cannot be read, or are of different kinds; says which.
    """
    found: dict[str, tuple[str, float]] = {}
    for text in (part.strip() for part in typed.split(",") if part.strip()):
        kind = _kind(text, config.database.levels)
        try:
            asked = float(text) if kind == "level" else quantity(text, kind).value
        except ValueError as fault:
            raise RequestError(f"--targets: '{text}' {fault}.") from fault
        found[text] = (kind, asked)
    if len({kind for kind, _ in found.values()}) > 1 or len({"%" in text for text in found}) > 1:
        listed = ", ".join(f"{text} ({kind})" for text, (kind, _) in found.items())
        raise RequestError(f"--targets must be of one kind, written in one way, but there are {listed}.")
    if len({asked for _, asked in found.values()}) < max(len(found), 2):
        raise RequestError(f"--targets is '{typed}'; give two different targets or more, such as 3B,4B,5B.")
    order = sorted(found, key=lambda text: found[text][1] * (1 if found[text][0] in _GROWING else -1))
    nothing: dict[str, Any] = {"level": None, "parameters": None, "memory": None, "speedup": None}
    values = {text: float(text) if found[text][0] == "level" else text for text in order}
    return {
        text: dataclasses.replace(config.target, **{**nothing, found[text][0]: value}) for text, value in values.items()
    }


def _kind(text: str, levels: int) -> Literal["level"] | Unit:
    """Which setting of a target is meant."""
    lower = text.lower()
    if lower.endswith("x"):
        return "speedup"
    if lower.endswith("ib") or lower[-2:] in ("kb", "mb", "gb", "tb"):
        return "memory"
    try:
        return "level" if 0 < float(text) < levels else "parameters"
    except ValueError:
        return "parameters"


def run_family(config: RunConfig, typed: str, *, rebuild: bool = False, restart: bool = False) -> list[Member]:
    """Prune a model to several targets at once; returns the members, the largest first.

    Args:
        config: a run; of its target only workload, context and the like count.
        typed: as in `family_targets`.
        rebuild: make damaged modules of the database again.
        restart: discard the searches that lie there.

    Raises:
        RequestError: the request cannot be fulfilled; of all targets this is found before any long work.
    """
    targets = family_targets(config, typed)
    configs = {name: dataclasses.replace(config, target=target) for name, target in targets.items()}

    def check(run: Run) -> None:
        for name, asked in configs.items():
            Run(asked, _MemberDirectory(run.directory, name), restart=True)

    members: list[Member] = []
    with opened(
        next(iter(configs.values())),
        restart=True,
        check=check,
        needs=[database_need, rounding_need, search_need, refit_need],
    ) as run:
        database, above = database_stage(run, rebuild=rebuild), None
        for name, asked in configs.items():
            directory = _MemberDirectory(run.directory, name)
            directory.path.mkdir(parents=True, exist_ok=True)
            member = Run(asked, directory, restart=restart, above=above)
            log.info("Target %s, %d of %d.", name, len(members) + 1, len(configs))
            above = search_stage(member, database, restart=restart)
            refits = refit_stage(member, database, above)
            summary = _finished(member, database, above, refits)
            members.append(Member(name, directory.path, run.space.levels_of(above), summary))
        if ranks.is_first():
            _save(run.directory.path / "family", members)
    return members


def _finished(run: Run, database: Any, genome: Genome, refits: Refits | None) -> dict[str, Any]:
    """Export and score a member; the first rank does it."""
    if not ranks.is_first():
        return {}
    export_stage(run, database, genome, refits)
    return evaluation_stage(run, database, genome, refits)


def _save(folder: Path, members: list[Member]) -> None:
    dense = members[0].summary["dense"]
    rows = [
        {"target": m.name, "folder": m.folder.name, "levels": m.levels}
        | {key: m.summary[key] for key in ("pruned", "uniform", "achieved")}
        for m in members
    ]
    write_json(folder / "family.json", {"dense": dense, "members": rows})
    draw_family(dense, rows, folder / "family.png")
