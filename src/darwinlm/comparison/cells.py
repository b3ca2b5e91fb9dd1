"""The cells of a comparison: one method at one level with one seed, found, scored, and kept as a file.

compare/dense.json                                 the dense model
compare/METHOD/levelL_seedS/                       L: a level, or with formats the most bytes of the file
compare/METHOD/levelL_seedS/search/                state of a search under way
compare/METHOD/levelL_seedS/orders.safetensors     of methods without a refit: in which order units leave
compare/sheared/levelL_seedS/sheared/              the model that ShearedLLaMA trained, and the same of it
compare/METHOD/levelL_seedS/pruned.json            the finished cell, with the settings it depends on
compare/METHOD/levelL_seedS/trained_TOKENS.json    the same after post-training
compare/METHOD/levelL_seedS/model/                 its checkpoint as pruned, where that is asked
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.registry import METHODS
from darwinlm.comparison.methods.task import BORROWED, Task
from darwinlm.comparison.table import Cell
from darwinlm.config import ROUNDED, to_dict
from darwinlm.config.reading import adapter
from darwinlm.cost import Work, training_need
from darwinlm.errors import DamagedFileError
from darwinlm.export.card import model_card
from darwinlm.export.folder import record_of
from darwinlm.export.huggingface import export_checkpoint, write_model
from darwinlm.genome import Genome, Space
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.run.request import Run
from darwinlm.run.stages import cache_bytes, database_stage, make_teacher, rounding_stage
from darwinlm.runtime.files import read_json, require_room, sha256_of, write_json
from darwinlm.runtime.memory import Need
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import require_same
from darwinlm.search.record import SearchRecord
from darwinlm.search.samples import draw
from darwinlm.search.trial import Trial

_OTHER = "Choose another --output, or ask for what is there."
_ALWAYS = ("start_tokens",)
"""Settings of the search that methods without one use, too."""
_NO_MATTER = ("check_every", "continue_training")
"""Settings of the search that change nothing of what it finds."""


@dataclass(frozen=True)
class Training:
    """The post-training that every model of a comparison gets."""

    tokens: int
    """0: none."""
    learning_rate: float
    """AdamW's."""


@dataclass(frozen=True)
class Place:
    """Where a cell stands: a method at a level with a seed."""

    method: str
    level: float
    """In steps; with formats the most bytes of the file."""
    seed: int


def folder_of(run: Run) -> Path:
    """Where the comparison of a run lies."""
    return run.directory.path / "compare"


def _cell_folder(run: Run, place: Place) -> Path:
    return folder_of(run) / place.method / f"level{place.level:.12g}_seed{place.seed}"


def _files(run: Run, place: Place, training: Training) -> dict[Path, dict[str, Any]]:
    """The files of a cell and the settings that each depends on: as pruned, and after training where that is asked."""
    folder, identity = _cell_folder(run, place), _identity(run, place)
    identity = identity | run.identities.quality
    files = {folder / "pruned.json": identity}
    if training.tokens:
        later = {f"training.{name}": value for name, value in dataclasses.asdict(training).items()}
        later |= {"training.seed": run.config.seed, "search.batch_sequences": run.config.search.batch_sequences}
        files[folder / f"trained_{training.tokens}.json"] = identity | later
    return files


def _identity(run: Run, place: Place) -> dict[str, Any]:
    """What the levels of a cell depend on."""
    settings = to_dict(run.config.search)
    names = settings if METHODS[place.method].searches else _ALWAYS
    search = {f"search.{name}": settings[name] for name in names if name not in _NO_MATTER}
    if METHODS[place.method].formats:
        target = to_dict(run.config.target)
        search |= {f"target.{name}": target[name] for name in ("formats", "embedding_format", "batch", "context")}
        search["target.rounded"] = ROUNDED
    for group in METHODS[place.method].settings:
        search |= {f"{group}.{name}": value for name, value in to_dict(getattr(run.config, group)).items()}
    return {**run.identities.selection, **dataclasses.asdict(place), **search}


def require_same_cell(run: Run, place: Place, training: Training) -> None:
    """Refuse to mix results of different settings.

    Raises:
        RequestError: a file of the cell was made from something else; names each setting that differs.
    """
    folder = _cell_folder(run, place)
    for path, identity in _files(run, place, training).items():
        if path.exists():
            require_same(read_json(path).get("identity", {}), identity, folder, "a result", _OTHER)
    for state in sorted(folder.rglob("search/state.json")):
        stored = SearchRecord(state.parent, {}, Space(())).stored_identity() or {}
        require_same(stored, _identity(run, place), folder, "a search", _OTHER)


class Workbench:
    """What the cells of a run share, each made when it is first needed.

    Args:
        run: opened.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.teacher = functools.cache(lambda: make_teacher(run))
        self.held_out = functools.cache(lambda: HeldOut(run.splits.held_out, run.stream))
        self.assembler = functools.cache(self._assembler)
        self.plain = functools.cache(
            lambda: Assembler(run.source, self.assembler().database, cache_bytes=cache_bytes())
        )
        self.found: dict[tuple[str, float | None, int], tuple[Any, float]] = {}

    def _assembler(self) -> Assembler:
        database = database_stage(self.run)
        rounding_stage(self.run, database)
        return self.run.assembler(database, cache_bytes=cache_bytes())

    @functools.cached_property
    def dense_quality(self) -> Quality:
        """The dense model on held-out text; kept in a file, like a cell."""
        path, made_from = folder_of(self.run) / "dense.json", sha256_of(self.run.identities.quality)
        if path.exists() and (stored := read_json(path)).get("made_from") == made_from:
            return Quality(**stored["quality"])
        quality = self.held_out().dense_quality()
        write_json(path, {"made_from": made_from, "quality": dataclasses.asdict(quality)})
        return quality

    def budget(self, level: float) -> int:
        """Parameters that every method may leave at a level: those of the uniform model; with formats the level itself, bytes."""
        run, share = self.run, level / self.run.config.database.levels
        if run.config.target.formats:
            return int(level)
        return Task.budget_of(self.assembler(), share, run.config.seed)

    def task(self, place: Place) -> Task:
        """What a method is asked in a cell."""
        run, in_formats = self.run, bool(self.run.config.target.formats)
        widths = self.assembler().module_widths
        return Task(
            assembler=self.assembler(),
            stream=run.stream,
            teacher=self.teacher(),
            train=run.splits.train,
            share=0.0 if in_formats else place.level / run.config.database.levels,
            search=run.config.search,
            seed=place.seed,
            folder=_cell_folder(run, place),
            identity=_identity(run, place),
            found=self.found,
            sheared=run.config.sheared,
            memory=run.target.within(int(place.level)).budget(widths) if in_formats else None,
            plain=self.plain() if in_formats else None,
        )


def require_room_for_trained(run: Run, places: Sequence[Place]) -> None:
    """Check that the full-size models that methods train have room: each is kept.

    Raises:
        RequestError: it has not.
    """
    missing = [p for p in places if METHODS[p.method].keeps and not (_cell_folder(run, p) / "pruned.json").exists()]
    if missing:
        needed = len(missing) * run.source.shape.parameters * run.source.dtype.itemsize
        names = ", ".join(sorted({place.method for place in missing}))
        require_room(run.directory.path, needed, f"What {names} trains")


def later_training_need(work: Work) -> Need:
    """Memory of the post-training that every model of a comparison gets."""
    return training_need("The post-training", work, work.pruned, "leave --train-tokens out")


def finished_cell(bench: Workbench, place: Place, training: Training) -> Cell:
    """A cell from its file, or made now.

    Raises:
        DamagedFileError: its file is not whole.
    """
    path, identity = list(_files(bench.run, place, training).items())[-1]
    if path.exists():
        try:
            return adapter(Cell).validate_python(read_json(path))
        except ValidationError as fault:
            name = ".".join(map(str, fault.errors()[0]["loc"]))
            raise DamagedFileError(f"'{path}' lacks {name!r}. Delete it to have it made again.") from fault
    cell = _trained(bench, place, training) if training.tokens else _found(bench, place)
    write_json(path, {"identity": identity, **dataclasses.asdict(cell)})
    return cell


def _found(bench: Workbench, place: Place) -> Cell:
    """Find the levels of a cell and score its model."""
    run, method, task = bench.run, METHODS[place.method], bench.task(place)
    if not any(task.folder.rglob("search")):  # else it goes on with what a killed process left
        task.timings.forget("search", BORROWED)
    with task.timings.timed("search"):
        genome = method.find(task)
    ladders = task.space.ladders
    return Cell(
        **dataclasses.asdict(place),
        title=method.title,
        levels=task.space.levels_of(genome),
        formats=task.space.formats_of(genome),
        memory=task.memory.limits[0].spent(genome) if task.memory else None,
        kept={l.name: 1 - l.removed[level] * l.group_size / l.columns for l, level in zip(ladders, genome)},
        quality=bench.held_out().quality_of_model(method.model(task, genome, run.device, run.dtype)),
        trained=None,
        search_seconds=round(sum(task.timings.seconds().values()), 3),
        search_tokens=method.tokens(task),
    )


def keep_model(bench: Workbench, place: Place) -> None:
    """Write a finished cell's model, as pruned, as a checkpoint beside it; one that lies there is not made again."""
    run, method, task = bench.run, METHODS[place.method], bench.task(place)
    cell, folder = finished_cell(bench, place, Training(0, 0.0)), _cell_folder(run, place) / "model"
    genome = task.space.genome_of(cell.levels, cell.formats)
    made_from = {"cell": sha256_of(_identity(run, place)), "levels": cell.levels}
    facts = {"method": method.title, "level": f"{place.level:g} of {run.config.database.levels}", "seed": place.seed}
    if method.formats:
        made_from |= run.made_from(genome, task.assembler.database)
        facts["level"] = f"at most {place.level:,.0f} bytes"
    if record_of(folder) == made_from:
        return
    if method.stock or method.formats:
        return export_checkpoint(task.assembler, genome, folder, facts, made_from, stock=method.stock)
    model = method.model(task, genome, run.device, torch.float32)
    card = model_card(run.source, task.assembler.shape(genome), cell.levels, facts, told=f"pruned by {method.title}")
    if not write_model(folder, run.source, model, card=card, made_from=made_from):
        log.warning("%s gives a model no checkpoint of its family can hold (biases): it is not kept.", method.title)


def _trained(bench: Workbench, place: Place, training: Training) -> Cell:
    """The same levels after plain training: AdamW, cross entropy, the same tokens in the same order for all methods."""
    cell, task, run = finished_cell(bench, place, Training(0, 0.0)), bench.task(place), bench.run
    genome: Genome = task.space.genome_of(cell.levels, cell.formats)
    model = METHODS[place.method].model(task, genome, run.device, torch.float32)
    trial = Trial(model, training.learning_rate, run.config.search.batch_sequences, run.dtype)
    trial.train(run.splits.train, draw(run.splits.train, training.tokens, run.config.seed, "post-training", 0, 0))
    return dataclasses.replace(cell, trained=bench.held_out().quality_of_model(model))
