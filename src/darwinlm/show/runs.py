"""Runs: database, genome, refit, the end; recipes, the demo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.syntax import Syntax

from darwinlm.config import RunConfig, as_flags
from darwinlm.database.store import Database
from darwinlm.measure.tables import doubts, pruned_table, quality_cells
from darwinlm.models.family import place_of
from darwinlm.models.sites import KINDS, Kind
from darwinlm.refit.store import Refits
from darwinlm.run.demonstration import DemoRow
from darwinlm.run.family import Member
from darwinlm.show.result import Result, empty_table, lies, shown, taken


@dataclass(frozen=True)
class Pruned(Result):
    """A pruned model, and how good it is."""

    model: str
    """The dense model."""
    folder: Path
    """The run directory; the checkpoint lies in its `model/`."""
    summary: dict[str, Any]
    """What `summary.json` holds: `dense`, `uniform` and `pruned` with `parameters`, `perplexity` and `kl` (nats per token,
    held-out text), `target`, `achieved`, `seconds` by stage, `peak_memory_bytes`; empty on other ranks than the first."""

    def tables(self) -> Iterable[Any]:
        """Quality and time."""
        yield shown(pruned_table(self.summary, "Held-out text", taken(self.summary)))
        yield from doubts(self.summary)
        yield lies("The report lies", self.folder / "report.html")

    def after(self) -> Sequence[Any]:
        """Score it on other text."""
        return "eval", self.folder / "model", "--against", self.model, "--data", "OTHER_TEXT"


@dataclass(frozen=True)
class Family(Result):
    """Several nested models, the largest first."""

    model: str
    """The dense model."""
    folder: Path
    """Numbers and a picture of them all."""
    members: list[Member]

    def tables(self) -> Iterable[Any]:
        """A row for each."""
        columns = ("parameters", "perplexity", "KL to dense", "uniform: perplexity", "KL")
        table = empty_table("Held-out text", "target", *columns)
        dense = self.members[0].summary["dense"]
        table.add_row("dense", f"{dense['parameters']:,}", *quality_cells(dense), "", "")
        for member in self.members:
            pruned, uniform = member.summary["pruned"], member.summary["uniform"]
            table.add_row(member.name, f"{pruned['parameters']:,}", *quality_cells(pruned), *quality_cells(uniform))
        yield table
        yield lies("Numbers and picture lie", self.folder)

    def after(self) -> Sequence[Any]:
        """Score the smallest on other text."""
        return "eval", self.members[-1].folder / "model", "--against", self.model, "--data", "OTHER_TEXT"


@dataclass(frozen=True)
class Levels(Result):
    """A level database."""

    database: Database
    config: RunConfig
    checked: bool = False
    """Whether it was only looked at."""
    picture: Path | None = None
    """Of the errors."""

    def tables(self) -> Iterable[Any]:
        """Relative error of every module at every level."""
        if self.checked:
            yield f"All {len(self.database.modules)} files of '{self.database.folder}' are whole."
        if self.picture or not self.checked:
            yield self._errors()
        if self.picture:
            yield lies("The picture lies", self.picture)

    def _errors(self) -> Any:
        top = max(ladder.top for ladder in self.database.ladders())
        table = empty_table(
            "Relative error of the module's output", "module", *(f"level {i}" for i in range(1, top + 1))
        )
        for ladder in self.database.ladders():
            errors = self.database.modules[ladder.name].relative_errors
            cells = ["-" if i <= ladder.present else f"{error:.3f}" for i, error in enumerate(errors)][1:]
            table.add_row(ladder.name.removeprefix("model."), *cells)
        return table

    def after(self) -> Sequence[Any]:
        """Search on it."""
        return () if self.checked else ("search", "--output", self.config.output, *as_flags(self.config.target))

    def to_dict(self) -> dict[str, Any]:
        """The folder, and the errors of every module by level: relative squared error of its output, 0 dense, 1 gone."""
        errors = {name: list(module.relative_errors) for name, module in self.database.modules.items()}
        return {"folder": str(self.database.folder), "relative_errors": errors}


@dataclass(frozen=True)
class Found(Result):
    """What a search found: the level of every module, from 0, dense, up."""

    folder: Path
    """The run directory."""
    levels: dict[str, int]

    def tables(self) -> Iterable[Any]:
        """A row for each layer."""
        table = empty_table("Levels found", "layer", "attention", "MLP")
        layers: dict[int, dict[Kind, int]] = {}
        for name, level in self.levels.items():
            layer, kind = place_of(name)
            layers.setdefault(layer, {})[kind] = level
        for layer, found in sorted(layers.items()):
            table.add_row(str(layer), *(str(found.get(kind, "-")) for kind in KINDS))
        yield table

    def after(self) -> Sequence[Any]:
        """Write the checkpoint."""
        return "export", "--output", self.folder


@dataclass(frozen=True)
class Refitted(Result):
    """The found model's output matrices, refitted on its own inputs."""

    folder: Path
    """The run directory."""
    refits: Refits

    def tables(self) -> Iterable[Any]:
        """Every output matrix that there is."""
        columns = ("before", "after", "damping", "columns exchanged")
        table = empty_table("What the residual stream lacks, mean square", "matrix", *columns)
        for name, found in self.refits.matrices.items():
            damping = "stays" if found.damping is None else f"{found.damping:g}"
            errors = (f"{found.before:.4g}", f"{found.after:.4g}")
            table.add_row(name.removeprefix("model."), *errors, damping, str(found.exchanged or "-"))
        table.caption = (
            f"{self.refits.identity['tokens']:,} tokens, an eighth of them only to choose. KL by the first layers that have "
            f"it: {self.refits.kl_by_depth}. The first {self.refits.depth} have it."
        )
        yield table

    def after(self) -> Sequence[Any]:
        """Write the checkpoint."""
        return "export", "--output", self.folder

    def to_dict(self) -> dict[str, Any]:
        """KL before and after (nats per token), and how many of the first layers have the refit."""
        before, after = self.refits.before_and_after
        return {"folder": str(self.folder), "kl_before": before, "kl_after": after, "layers": self.refits.depth}


@dataclass(frozen=True)
class RecipeRun(Result):
    """The steps of a recipe, finished."""

    steps: list[dict[str, Any]]
    """`step`, `model` (its checkpoint), `parameters`, `perplexity` and `kl`; none on other ranks than the first."""

    def tables(self) -> Iterable[Any]:
        """A row for each."""
        table = empty_table("Steps, each scored on its own held-out text", "step", "parameters", "perplexity", "KL")
        for row in self.steps:
            table.add_row(row["step"], f"{row['parameters']:,}", *quality_cells(row))
        table.caption = "KL to the model that a pruning began with, or to the teacher of a training."
        yield table
        yield lies("The last model lies", self.steps[-1]["model"])

    def after(self) -> Sequence[Any]:
        """Score the last on other text."""
        return "eval", self.steps[-1]["model"], "--against", "MODEL", "--data", "OTHER_TEXT"


@dataclass(frozen=True)
class Demonstrated(Result):
    """The embedded model, pruned."""

    folder: Path
    """The run directory."""
    rows: list[DemoRow]
    """Dense, uniform, DarwinLM."""

    def tables(self) -> Iterable[Any]:
        """What they write, and how good and fast they are."""
        for row in self.rows:
            yield Panel(
                Syntax(row.completion.rstrip(), "python", theme="ansi_light"), title=row.name, title_align="left"
            )
        columns = ("parameters", "perplexity", "KL to dense", "tokens/s")
        table = empty_table("The embedded model, pruned", "model", *columns)
        for row in self.rows:
            speed = f"{row.tokens_per_second:,.0f}"
            table.add_row(row.name, f"{row.parameters:,}", f"{row.perplexity:.2f}", f"{row.kl:.4f}", speed)
        yield table
        yield lies("This run lies", self.folder)

    def after(self) -> Sequence[Any]:
        """The same with a model of one's own."""
        return "prune", "MODEL", "--data", "DATA", "--preset", "quick", "--output", "runs/mine"
