"""A run: its database, its genome, its forms, its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from darwinlm.database.store import Database
from darwinlm.demonstration import DemoRow
from darwinlm.export.forms import Form
from darwinlm.foreign.gguf.importing import ImportedGguf
from darwinlm.foreign.masked import Imported
from darwinlm.models.family import place_of
from darwinlm.models.sites import KINDS, Kind
from darwinlm.nested import Member
from darwinlm.refit.store import Refits
from darwinlm.results import QUALITIES
from darwinlm.runtime.output import pasted
from darwinlm.runtime.progress import duration
from darwinlm.tables.cells import empty_table, gigabytes, kl_cell


def summary(values: dict[str, Any]) -> Table:
    """The end of `darwinlm prune`."""
    table = empty_table("Held-out text", "model", "parameters", "perplexity", "KL to dense")
    for key, label in QUALITIES.items():
        if not (row := values.get(key)):
            continue
        table.add_row(label, f"{row['parameters']:,}", f"{row['perplexity']:.2f}", kl_cell(row["kl"]))
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in values["seconds"].items())
    table.caption = f"{stages}; peak memory {values['peak_memory_bytes'] / 1e9:.2f} GB"
    return table


def family(members: list[Member]) -> Table:
    """The end of `darwinlm prune --targets`."""
    table = empty_table(
        "Held-out text", "target", "parameters", "perplexity", "KL to dense", "uniform: perplexity", "KL"
    )
    dense = members[0].summary["dense"]
    table.add_row("dense", f"{dense['parameters']:,}", f"{dense['perplexity']:.2f}", kl_cell(dense["kl"]), "", "")
    for member in members:
        pruned, uniform = member.summary["pruned"], member.summary["uniform"]
        cells = (f"{pruned['parameters']:,}", f"{pruned['perplexity']:.2f}", kl_cell(pruned["kl"]))
        table.add_row(member.name, *cells, f"{uniform['perplexity']:.2f}", kl_cell(uniform["kl"]))
    return table


def database(built: Database) -> Table:
    """The end of `darwinlm database`: relative error of every module at every level."""
    top = max(ladder.top for ladder in built.ladders())
    table = empty_table("Relative error of the module's output", "module", *(f"level {i}" for i in range(1, top + 1)))
    for ladder in built.ladders():
        errors = built.modules[ladder.name].relative_errors
        cells = ["-" if i <= ladder.present else f"{error:.3f}" for i, error in enumerate(errors)][1:]
        table.add_row(ladder.name.removeprefix("model."), *cells)
    return table


def genome(levels: dict[str, int]) -> Table:
    """The end of `darwinlm search`: the level of every module."""
    table = empty_table("Levels found", "layer", "attention", "MLP")
    layers: dict[int, dict[Kind, int]] = {}
    for name, level in levels.items():
        layer, kind = place_of(name)
        layers.setdefault(layer, {})[kind] = level
    for layer, found in sorted(layers.items()):
        table.add_row(str(layer), *(str(found.get(kind, "-")) for kind in KINDS))
    return table


def refits(made: Refits) -> Table:
    """The end of `darwinlm refit`: every output matrix that there is."""
    table = empty_table(
        "What the residual stream lacks, mean square", "matrix", "before", "after", "damping", "columns exchanged"
    )
    for name, found in made.matrices.items():
        damping = "stays" if found.damping is None else f"{found.damping:g}"
        table.add_row(
            name.removeprefix("model."),
            f"{found.before:.4g}",
            f"{found.after:.4g}",
            damping,
            str(found.exchanged or "-"),
        )
    table.caption = (
        f"{made.identity['tokens']:,} tokens, an eighth of them only to choose; KL {made.kl[0]:.4f} -> {made.kl[1]:.4f}"
    )
    if not made.helps:
        table.caption += ", so the model stays as the search left it"
    return table


def forms(written: list[Form]) -> Iterable[Any]:
    """The end of `darwinlm export`."""
    table = empty_table("Written", "form", "parameters", "weights")
    for form in written:
        table.add_row(form.name, f"{form.parameters:,}", gigabytes(form.bytes))
    yield table
    for form in written:
        yield f"{form.name}: {pasted(form.path)}"
        for note in form.notes:
            yield f"{form.name}: {note}"
    yield "The folders load with transformers alone (trust_remote_code=True)."


def imported(found: Imported) -> Iterable[Any]:
    """The end of `darwinlm import`: what was there, and what is left."""
    table = empty_table("Kept", "layer", "query heads", "KV heads", "MLP columns")
    for layer, (old, new) in enumerate(zip(found.before.layers, found.after.layers)):
        pairs = ((old.heads, new.heads), (old.kv_heads, new.kv_heads), (old.intermediate, new.intermediate))
        table.add_row(str(layer), *(f"{after} of {before}" for before, after in pairs))
    table.caption = f"{found.after.parameters:,} of {found.before.parameters:,} parameters"
    yield table
    yield f"The checkpoint lies in {pasted(found.folder)}"


def imported_gguf(found: ImportedGguf) -> Iterable[Any]:
    """The end of `darwinlm import FILE.gguf`: what the file holds."""
    table = empty_table("Read", "family", "layers", "parameters", "matrices in the file", "stored as")
    types = ", ".join(f"{count} {name}" for name, count in found.types.items())
    row = (found.model_type, str(len(found.shape.layers)), f"{found.shape.parameters:,}", types)
    table.add_row(*row, str(found.dtype).removeprefix("torch."))
    yield table
    yield f"The checkpoint lies in {pasted(found.folder)}"


def demo(rows: list[DemoRow]) -> Iterable[Any]:
    """The end of `darwinlm demo`."""
    for row in rows:
        yield Panel(Syntax(row.completion.rstrip(), "python", theme="ansi_light"), title=row.name, title_align="left")
    table = empty_table("The embedded model, pruned", "model", "parameters", "perplexity", "KL to dense", "tokens/s")
    for row in rows:
        speed = f"{row.tokens_per_second:,.0f}"
        table.add_row(row.name, f"{row.parameters:,}", f"{row.perplexity:.2f}", kl_cell(row.kl), speed)
    yield table
