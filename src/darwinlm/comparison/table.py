"""The results of a comparison: what each method left of a model at each level, as rows, text and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from darwinlm.measure.method_pictures import OURS, draw_comparison
from darwinlm.measure.quality import Quality
from darwinlm.measure.tables import Table
from darwinlm.runtime.files import write_json, write_text


@dataclass(frozen=True)
class Cell:
    """One method at one level, with one seed."""

    method: str
    title: str
    level: float
    seed: int
    levels: dict[str, int]
    """{module name: level}."""
    kept: dict[str, float]
    """{module name: part of its output matrix's columns that is left}."""
    quality: Quality
    """On held-out text, as pruned."""
    trained: Quality | None
    """The same after post-training; None where that was not asked."""
    search_seconds: float
    """Time to find the levels; the database, which all methods share, is not in it."""
    search_tokens: int
    """Tokens that were trained on to find them."""
    formats: dict[str, str] = field(default_factory=dict)
    """{module name: format}, of those that have one."""
    memory: int | None = None
    """Bytes of the file, and of the KV cache where that counts; of methods that give formats."""


@dataclass(frozen=True)
class Row:
    """One method at one level: the mean over its seeds."""

    method: str
    title: str
    level: float
    seeds: int
    parameters: float
    memory: float | None
    perplexity: float
    perplexity_range: tuple[float, float]
    """Least and largest over the seeds."""
    kl: float
    trained_perplexity: float | None
    trained_kl: float | None
    search_seconds: float
    search_tokens: float


@dataclass(frozen=True)
class Comparison:
    """All cells of a comparison."""

    model: str
    budgets: dict[float, int]
    """{level: parameters that every method may leave, or bytes}."""
    dense: Quality
    cells: list[Cell]
    train_tokens: int
    """Tokens of the post-training; 0 where there was none."""
    in_bytes: bool = False
    """Whether modules have formats, and levels are the most bytes of the file."""

    @property
    def rows(self) -> list[Row]:
        """Methods within levels, in the order of the cells."""
        groups: dict[tuple[float, str], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.level, cell.method), []).append(cell)
        return [_row(group) for group in groups.values()]


def _row(cells: list[Cell]) -> Row:
    trained = [cell.trained for cell in cells if cell.trained]
    memory = [cell.memory for cell in cells if cell.memory is not None]
    perplexities = [cell.quality.perplexity for cell in cells]
    return Row(
        method=cells[0].method,
        title=cells[0].title,
        level=cells[0].level,
        seeds=len(cells),
        parameters=statistics.fmean(cell.quality.parameters for cell in cells),
        memory=statistics.fmean(memory) if memory else None,
        perplexity=statistics.fmean(perplexities),
        perplexity_range=(min(perplexities), max(perplexities)),
        kl=statistics.fmean(cell.quality.kl or 0.0 for cell in cells),
        trained_perplexity=statistics.fmean(quality.perplexity for quality in trained) if trained else None,
        trained_kl=statistics.fmean(quality.kl or 0.0 for quality in trained) if trained else None,
        search_seconds=statistics.fmean(cell.search_seconds for cell in cells),
        search_tokens=statistics.fmean(cell.search_tokens for cell in cells),
    )


def tables(comparison: Comparison) -> list[Table]:
    """A table for each level; a mean over seeds says so, and between which perplexities it lies."""
    later = comparison.train_tokens
    trained = [f"{name}, {later:,} tokens later" for name in ("perplexity", "KL")] if later else []
    sizes = ["bytes", "parameters"] if comparison.in_bytes else ["parameters"]
    searched = ["trained on in it"] if any(cell.search_tokens for cell in comparison.cells) else []
    heads = ["method", *sizes, "perplexity", "KL to dense", *trained, "search", *searched]
    ours = tuple({_named(row) for row in comparison.rows if row.method in OURS})
    return [
        Table(
            [_texts(row, bool(later), bool(searched)) for row in comparison.rows if row.level == level],
            heads,
            f"At most {most:,} bytes"
            if comparison.in_bytes
            else f"Level {level:g}: at most {most:,} parameters of {comparison.dense.parameters:,}",
            f"Dense: perplexity {comparison.dense.perplexity:.2f}; held-out text.",
            ours,
        )
        for level, most in comparison.budgets.items()
    ]


def _named(row: Row) -> str:
    return row.title + (f" (mean of {row.seeds})" if row.seeds > 1 else "")


def _texts(row: Row, later: bool, searched: bool) -> list[str]:
    between = " ({:,.2f}-{:,.2f})".format(*row.perplexity_range) if row.seeds > 1 else ""
    sizes = [f"{size:,.0f}" for size in (row.memory, row.parameters) if size is not None]
    found = [_named(row), *sizes, f"{row.perplexity:,.2f}{between}", f"{row.kl:.4f}"]
    if later:
        found.append("-" if row.trained_perplexity is None else f"{row.trained_perplexity:,.2f}")
        found.append("-" if row.trained_kl is None else f"{row.trained_kl:.4f}")
    found.append(f"{row.search_seconds:,.1f} s")
    if searched:
        found.append(f"{row.search_tokens:,.0f} tokens" if row.search_tokens else "-")
    return found


def markdown(comparison: Comparison) -> str:
    """All tables."""
    return "\n".join(table.markdown() for table in tables(comparison))


def as_csv(comparison: Comparison) -> str:
    """All rows, with a heading; ranges stand in `compare.json` alone."""
    text = io.StringIO()
    columns = [field.name for field in dataclasses.fields(Row) if field.name != "perplexity_range"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in comparison.rows)
    return text.getvalue()


def save_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `compare.json`, with its tables as people read them, `compare.md`, `compare.csv` and the pictures."""
    told = {"rows": comparison.rows, "tables": tables(comparison)}
    listed = {name: [dataclasses.asdict(each) for each in values] for name, values in told.items()}
    values = {**dataclasses.asdict(comparison), **listed}
    write_json(folder / "compare.json", values)
    write_text(folder / "compare.md", markdown(comparison))
    write_text(folder / "compare.csv", as_csv(comparison))
    draw_comparison(values, folder)
