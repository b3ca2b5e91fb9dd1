"""What the commands print at their end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from darwinlm.database.store import Database
from darwinlm.demonstration import DemoRow
from darwinlm.export.forms import Form
from darwinlm.foreign.masked import Imported
from darwinlm.measure import compare
from darwinlm.measure.bench import BenchResult
from darwinlm.measure.quality import Quality
from darwinlm.measure.timing import Spread
from darwinlm.planning import Plan, SizeRow
from darwinlm.runtime.progress import duration


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _kl(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def summary(values: dict[str, Any]) -> Table:
    """The end of `darwinlm prune`."""
    table = _table("Held-out text", "model", "parameters", "perplexity", "KL to dense")
    for key, label in (("dense", "dense"), ("uniform", "uniform, same level"), ("pruned", "DarwinLM")):
        row = values[key]
        table.add_row(label, f"{row['parameters']:,}", f"{row['perplexity']:.2f}", _kl(row["kl"]))
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in values["seconds"].items())
    table.caption = f"{stages}; peak memory {values['peak_memory_bytes'] / 1e9:.2f} GB"
    return table


def qualities(found: dict[str, Quality], title: str) -> Table:
    """The end of `darwinlm eval`."""
    table = _table(title, "model", "parameters", "perplexity", "KL to dense")
    for name, quality in found.items():
        table.add_row(name, f"{quality.parameters:,}", f"{quality.perplexity:.2f}", _kl(quality.kl))
    return table


def database(built: Database) -> Table:
    """The end of `darwinlm database`: relative error of every module at every level."""
    top = max(ladder.top for ladder in built.ladders())
    table = _table("Relative error of the module's output", "module", *(f"level {i}" for i in range(1, top + 1)))
    for ladder in built.ladders():
        errors = built.modules[ladder.name].relative_errors[1:]
        table.add_row(ladder.name.removeprefix("model."), *(f"{error:.3f}" for error in errors))
    return table


def genome(levels: dict[str, int]) -> Table:
    """The end of `darwinlm search`: the level of every module."""
    table = _table("Levels found", "layer", "attention", "MLP")
    layers: dict[int, dict[str, int]] = {}
    for name, level in levels.items():
        _, _, layer, module = name.split(".")
        layers.setdefault(int(layer), {})[module] = level
    for layer, found in sorted(layers.items()):
        table.add_row(str(layer), *(str(found.get(module, "-")) for module in ("self_attn", "mlp")))
    return table


def forms(written: list[Form]) -> Iterable[Any]:
    """The end of `darwinlm export`."""
    table = _table("Written", "form", "parameters", "weights", "path")
    for form in written:
        table.add_row(form.name, f"{form.parameters:,}", _gb(form.bytes), str(form.path))
    yield table
    for form in written:
        for note in form.notes:
            yield f"{form.name}: {note}"
    yield "The folders load with transformers alone (trust_remote_code=True)."


def imported(found: Imported) -> Table:
    """The end of `darwinlm import`: what was there, and what is left."""
    table = _table("Kept", "layer", "query heads", "KV heads", "MLP columns")
    for layer, (old, new) in enumerate(zip(found.before.layers, found.after.layers)):
        pairs = ((old.heads, new.heads), (old.kv_heads, new.kv_heads), (old.intermediate, new.intermediate))
        table.add_row(str(layer), *(f"{after} of {before}" for before, after in pairs))
    sizes = f"{found.after.parameters:,} of {found.before.parameters:,} parameters"
    table.caption = f"{sizes}; the checkpoint lies in {found.folder}"
    return table


def plan(values: Plan) -> Iterable[Any]:
    """What `darwinlm plan` prints."""
    sizes = _table("Sizes by level", "level", "parameters", "share", "in layers", "share", "KV/token", "checkpoint")
    for row in (values.dense, *values.levels):
        _add_size(sizes, f"{row.level:g}", row, values.dense)
    sizes.add_section()
    _add_size(sizes, f"target {values.target.level:g}", values.target, values.dense)
    yield sizes
    cost = _table("What the run takes", "stage", "tokens", "memory", "disk")
    memory = values.memory
    cost.add_row("database", f"{values.hessian_tokens:,}", _gb(memory.database), _gb(values.database_bytes))
    cost.add_row("  its hidden states, where there is room", "", _gb(memory.hidden_states), "")
    cost.add_row("search, training", f"{values.search_train_tokens:,}", _gb(memory.search), "")
    cost.add_row("search, scoring", f"{values.search_select_tokens:,}", "", "")
    cost.add_row("export", "", "", _gb(values.target.checkpoint_bytes))
    steps = ", ".join(
        f"{kind} {steps}"
        + (f" ({whole} without tensor_parallel)" if (whole := values.unsplit_steps[kind]) != steps else "")
        for kind, steps in values.steps.items()
    )
    other = "cpu" if values.machine.startswith("cuda") else "cuda"
    cost.caption = (
        f"Memory for {values.machine}; plan for another machine by --device {other}. Steps from dense to gone: {steps}"
    )
    yield cost


def _add_size(table: Table, label: str, row: SizeRow, dense: SizeRow) -> None:
    table.add_row(
        label,
        _count(row.parameters),
        f"{row.parameters / dense.parameters:.1%}",
        _count(row.layer_parameters),
        f"{row.layer_parameters / dense.layer_parameters:.1%}",
        f"{row.kv_cache_values_per_token:,}",
        _gb(row.checkpoint_bytes),
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def demo(rows: list[DemoRow]) -> Iterable[Any]:
    """The end of `darwinlm demo`."""
    for row in rows:
        yield Panel(Syntax(row.completion.rstrip(), "python", theme="ansi_light"), title=row.name, title_align="left")
    table = _table("The embedded model, pruned", "model", "parameters", "perplexity", "KL to dense", "tokens/s")
    for row in rows:
        speed = f"{row.tokens_per_second:,.0f}"
        table.add_row(row.name, f"{row.parameters:,}", f"{row.perplexity:.2f}", _kl(row.kl), speed)
    yield table


def bench(result: BenchResult) -> Iterable[Any]:
    """The end of `darwinlm bench`: a table for each batch size and context length."""
    columns = ("layers", "first token", "prefill", "speed-up", "decode", "speed-up", "memory", "KV/token")
    for place, first in enumerate(result.measurements[0]):
        work = first.work
        title = f"{work.sequences} x {work.tokens:,} tokens read, {work.written:,} more written; tokens per second"
        table = _table(title, "model", *columns)
        for model, (facts, rows) in enumerate(zip(result.models, result.measurements)):
            row = rows[place]
            table.add_row(
                Path(facts.name).name,
                f"{result.layer_ratio(model):.2f}x",
                f"{1e3 * row.prefill_seconds.median:,.1f} ms",
                f"{row.tokens_per_second('prefill'):,.0f}",
                _speedup(row.prefill_speedup),
                f"{row.tokens_per_second('decode'):,.0f}",
                _speedup(row.decode_speedup),
                "-" if row.memory_bytes is None else _gb(row.memory_bytes),
                f"{row.cache_bytes_per_token:,.0f} B",
            )
        yield table
    repeats = result.settings["repeats"]
    machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
    yield (
        f"Medians of {repeats} rounds in turn, quartiles in brackets; layers: how many times fewer parameters the layers "
        f"have, which is the speed-up that they promise. {result.models[0].engine}, {machine}."
    )


def comparison(result: compare.Comparison) -> Iterable[Any]:
    """The end of `darwinlm compare`: a table for each level."""
    for level in result.budgets:
        table = _table(compare.level_title(result, level), *compare.headings(result))
        table.columns[0].no_wrap = True
        for row in result.rows:
            if row.level == level:
                table.add_row(*compare.texts(result, row), style="bold" if row.method == "darwinlm" else None)
        table.caption = f"dense: perplexity {result.dense.perplexity:.2f}; held-out text"
        yield table


def _speedup(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
