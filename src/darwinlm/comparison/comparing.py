"""`darwinlm compare`: every method on one model, one database, the same budgets and the same held-out text.

A comparison that was killed goes on with the first cell that is missing, within the search that was going on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from darwinlm.comparison.cells import (
    Place,
    Training,
    Workbench,
    finished_cell,
    folder_of,
    keep_model,
    later_training_need,
    require_room_for_trained,
    require_same_cell,
)
from darwinlm.comparison.methods.formats import smallest_whole
from darwinlm.comparison.methods.registry import METHODS, methods_named
from darwinlm.comparison.table import Comparison, save_comparison
from darwinlm.config import RunConfig, TargetConfig, resolve, written
from darwinlm.config.quantities import quantity
from darwinlm.cost import database_need, rounding_need
from darwinlm.errors import RequestError
from darwinlm.run.plan import level_of
from darwinlm.run.request import Run, opened
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import log
from darwinlm.target.stock import stock_levels


@dataclass(frozen=True)
class Asked:
    """What a comparison is to hold, beside the settings of a run."""

    methods: list[str]
    levels: list[float]
    training: Training
    seeds: int = 1
    """Runs with different seeds of the methods that search."""
    keep_models: bool = False
    """Write every cell's model as a checkpoint, too."""
    formats: TargetConfig | None = None
    """Where modules are to have formats: those, and the first of `sizes`."""
    sizes: tuple[str, ...] = ()
    """Of the file, instead of levels."""

    def runs(self, method: str) -> int:
        """Runs of a method, whose mean is reported."""
        return max(METHODS[method].seeds, self.seeds if METHODS[method].searches else 1)


def asked(
    config: RunConfig,
    methods: str = "all",
    levels: str = "",
    train_tokens: int = 0,
    learning_rate: float = 3e-5,
    seeds: int = 1,
    keep_models: bool = False,
    formats: TargetConfig | None = None,
) -> Asked:
    """Check what is asked.

    Args:
        config: blocks, levels and target count.
        methods: names with commas, or `all`.
        levels: with commas, in steps of `database.levels`, or sizes such as 60%; by default the target's. With
            formats sizes of the file.
        train_tokens: 0 for no post-training.
        learning_rate: of the post-training.
        seeds: runs of every method that searches.
        keep_models: write every cell's model as a checkpoint, too.
        formats: as `in_formats` gives them.

    Raises:
        RequestError: it does not fit; names all that does not.
    """
    faults: list[str] = []
    top, pool = config.database.levels, config.blocks.train * config.blocks.sequence_length
    default = top / 2 if config.target.level is None else config.target.level
    typed = levels or ("50%" if formats else f"{default:g}")
    found: list[float] = []
    for text in typed.split(","):
        try:
            if formats:
                quantity(text, "memory")
            else:
                found.append(_level(text, config))
        except ValueError as fault:
            faults.append(f"--levels {fault}{'' if formats else f', or a level such as {top / 2:g}'}.")
    for level in found:
        if not 0 < level < top:
            faults.append(
                f"--levels names {level:g}; each must lie between 0 (dense) and {top} (nothing left), both excluded."
            )
    if train_tokens and not 2 <= train_tokens <= pool:
        faults.append(
            f"--train_tokens is {train_tokens}; it must be 0, or a whole number from 2 to {pool} (blocks.train x "
            "blocks.sequence_length). Raise blocks.train for more."
        )
    if train_tokens and formats:
        faults.append("--train_tokens leaves no format as it is. Leave it out, or --formats.")
    if not 0 < learning_rate < float("inf"):
        faults.append(f"--learning_rate is {learning_rate:g}; it must be positive, such as 3e-5.")
    if seeds < 1:
        faults.append(f"--seeds is {seeds}; it must be a whole number, at least 1.")
    try:
        names = methods_named(methods, in_formats=formats is not None)
    except RequestError as fault:
        raise RequestError(*fault.faults, *faults) from fault
    if faults:
        raise RequestError(*faults)
    sizes = tuple(dict.fromkeys(map(str.strip, typed.split(",")))) if formats else ()
    training = Training(train_tokens, learning_rate)
    return Asked(names, sorted(set(found)), training, seeds, keep_models, formats, sizes)


def in_formats(formats: str, embedding_format: str) -> TargetConfig | None:
    """A target of half the bytes with these formats, the KV cache left out; None where none are given.

    Args:
        formats: names with commas.
        embedding_format: of embedding and head; empty for the checkpoint's own.

    Raises:
        RequestError: one is unknown, or they do not go together.
    """
    if not formats:
        if embedding_format:
            raise RequestError("--embedding_format counts with --formats alone. Give both, or neither.")
        return None
    given = {"formats": [name.strip() for name in formats.split(",")], "embedding_format": embedding_format or None}
    with _told_as("--", instead_of="target."):
        return resolve({"target": {**given, "memory": "50%", "context": 0}}).target


@contextmanager
def _told_as(typed: str, *, instead_of: str) -> Iterator[None]:
    """Let what is wrong name what was typed."""
    try:
        yield
    except RequestError as fault:
        raise type(fault)(*(told.replace(instead_of, typed) for told in fault.faults)) from fault


def _level(typed: str, config: RunConfig) -> float:
    """A level, or that whose uniform model has a size.

    Raises:
        ValueError: it is neither.
    """
    try:
        return float(typed)
    except ValueError:
        return level_of(config, quantity(typed, "parameters"))


def run_compare(config: RunConfig, wanted: Asked) -> tuple[Comparison, Path]:
    """Make the cells that are missing; returns all that were asked, and the folder with tables and pictures.

    Args:
        config: the settings of a run; `target` does not count.
        wanted: methods, levels and post-training.

    Raises:
        RequestError: the request cannot be fulfilled, or the folder holds results of other settings.
    """
    if ranks.world_size() > 1:
        raise RequestError("`darwinlm compare` runs in one process. Start it without torchrun.")
    if wanted.formats:
        config = dataclasses.replace(config, target=dataclasses.replace(wanted.formats, memory=wanted.sizes[0]))
    elif written(config.target) or not 0 < (config.target.level or 0) < config.database.levels:
        config = dataclasses.replace(config, target=TargetConfig(level=wanted.levels[0]))

    def check(run: Run) -> None:
        if any(run.space.present):
            raise RequestError(
                f"'{run.source.name}' is pruned already, and the methods are compared from a whole model on. Give the model "
                "that it was pruned from; `darwinlm prune` takes pruned ones, too."
            )
        for method in wanted.methods:
            if reason := METHODS[method].refusal(run.source.family):
                raise RequestError(
                    f"{METHODS[method].title} does not work on the family {run.source.family}: {reason}. Leave {method} out of "
                    "--methods."
                )
        if any(METHODS[method].stock for method in wanted.methods):
            stock_levels(run.source.shape, run.space, run.nominal)
        for size in wanted.sizes:
            run.target.within(size).require_reachable(run.nominal)
        places = _places(run, wanted)
        for place in places:
            if place.method == "formats_alone":
                _require_whole(run, int(place.level))
        require_room_for_trained(run, places)
        for place in places:
            require_same_cell(run, place, wanted.training)

    needs = [database_need, rounding_need, *dict.fromkeys(need for m in wanted.methods if (need := METHODS[m].need))]
    if wanted.training.tokens:
        needs.append(later_training_need)
    with _told_as("--levels", instead_of="target.memory"), opened(config, check=check, needs=needs) as run:
        comparison = _compared(run, wanted)
        folder = folder_of(run)
        save_comparison(comparison, folder)
        return comparison, folder


def _places(run: Run, wanted: Asked) -> list[Place]:
    """All cells, in their order."""
    sizes = (run.target.within(size).budget(run.nominal).limits[0].most for size in wanted.sizes)
    return [
        Place(method, level, run.config.seed + repeat)
        for level in [*wanted.levels, *sorted(set(sizes))]
        for method in wanted.methods
        for repeat in range(wanted.runs(method))
    ]


def _require_whole(run: Run, most: int) -> None:
    """Check that the dense model in the smallest format has so few bytes.

    Raises:
        RequestError: it has not.
    """
    least = run.target.budget(run.nominal).limits[0].spent(smallest_whole(run.space))
    if least > most:
        raise RequestError(
            f"formats_alone removes nothing, and the dense model in {run.space.formats[-1]} has {least:,} bytes, but {most:,} "
            "are asked. Ask for more, give a smaller format, or leave formats_alone out of --methods."
        )


def _compared(run: Run, wanted: Asked) -> Comparison:
    bench, cells, places = Workbench(run), [], _places(run, wanted)
    for number, place in enumerate(places, 1):
        cell = finished_cell(bench, place, wanted.training)
        cells.append(cell)
        if wanted.keep_models:
            keep_model(bench, place)
        at = f"{place.level:,.0f} bytes" if wanted.sizes else f"level {place.level:g}"
        found = f"{at}, {cell.title}: perplexity {cell.quality.perplexity:.2f}"
        later = f", {cell.trained.perplexity:.2f} after training" if cell.trained else ""
        log.info("Cell %d/%d: %s%s", number, len(places), found, later)
    budgets = {place.level: bench.budget(place.level) for place in places}
    return Comparison(run.config.model, budgets, bench.dense_quality, cells, wanted.training.tokens, bool(wanted.sizes))
