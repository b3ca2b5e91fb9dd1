"""Tables as people read them, made once for the terminal, the report and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darwinlm.measure.task_scores import PAIRED, TaskComparison

_BAR = "\\|"
WIDE = 3
"""Models beyond which they are rows of a table of tasks, and only what counts in the average is shown."""

QUALITIES = {
    "dense": "dense",
    "uniform": "uniform, same level",
    "before_refit": "DarwinLM before its refit",
    "pruned": "DarwinLM",
}
"""What `summary.json` holds of models on held-out text, and what tables call them."""


@dataclass(frozen=True)
class Table:
    """Rows of texts; without headings they are facts: name and value."""

    rows: list[list[str]]
    headings: list[str] = field(default_factory=list)
    title: str = ""
    note: str = ""
    """What stands below."""
    ours: tuple[str, ...] = ()
    """First cells of the rows to stress."""
    folded: str = ""
    """What to click on to see the table; empty shows it."""

    def markdown(self) -> str:
        """Title, rows, note."""
        rows = (self.headings, ["---"] * len(self.headings), *self.rows)
        lines = [f"| {' | '.join(cell.replace('|', _BAR) for cell in row)} |" for row in rows]
        title, note = [f"{self.title}.", ""] if self.title else [], ["", self.note] if self.note else []
        return "\n".join([*title, *lines, *note]) + "\n"


def with_error(value: float, error: float | None, digits: int) -> str:
    """A number and its standard error, where there is one that is not 0."""
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")


def percent(share: float) -> str:
    """A part of the whole."""
    return f"{100 * share:.1f} %"


def quality_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    """Perplexity and KL, with standard errors where they are known."""
    kl = row.get("kl")
    perplexity = with_error(row["perplexity"], row.get("perplexity_error"), 2)
    return perplexity, "-" if kl is None else with_error(kl, row.get("kl_error"), 4)


def quality_table(
    named: Mapping[str, Mapping[str, Any]],
    title: str = "",
    ours: tuple[str, ...] = (),
    to: str = "dense",
    note: str = "",
) -> Table:
    """{label: {parameters, perplexity, kl}}, with the part of the first one's parameters where sizes differ."""
    sizes = [row["parameters"] for row in named.values()]
    shared = len(set(sizes)) > 1
    rows = [
        [
            label,
            f"{row['parameters']:,}",
            *([percent(row["parameters"] / sizes[0])] if shared else []),
            *quality_cells(row),
        ]
        for label, row in named.items()
    ]
    heads = ["model", "parameters", *(["share"] if shared else []), "perplexity", f"KL to {to}"]
    return Table(rows, heads, title, note, ours)


def pruned_table(summary: Mapping[str, Any], title: str = "", note: str = "") -> Table:
    """The models of a run's `summary.json`."""
    rows = {label: summary[name] for name, label in QUALITIES.items() if name in summary}
    return quality_table(rows, title, (QUALITIES["pruned"],), note=note)


def doubts(summary: Mapping[str, Any]) -> list[str]:
    """What held-out text says against the models of a run's `summary.json`."""
    found, kl = [], {name: summary[name]["kl"] for name in QUALITIES if name in summary}
    best = min(kl["pruned"], kl.get("before_refit", kl["pruned"]))
    if best > kl.get("uniform", best):
        found.append(
            "The uniform model has a lower KL here: the search was scored on too little text (search.start_tokens, "
            "search.select_tokens), or on another kind than is held out."
        )
    if kl["pruned"] > kl.get("before_refit", kl["pruned"]):
        found.append(
            "The refit raised KL here, though not where it was judged: give it more tokens (refit.tokens), text of this kind, "
            "or none (--refit.tokens 0)."
        )
    return found


def trained_table(summary: Mapping[str, Any], title: str = "", note: str = "") -> Table:
    """The model of a training's `summary.json`, before and after."""
    named = {"as it was": summary["before"], f"after {summary['tokens']:,} tokens": summary["trained"]}
    rows = {label: {**row, "parameters": summary["parameters"]} for label, row in named.items()}
    return quality_table(rows, title, (list(named)[-1],), "teacher", note)


def bench_tables(result: Mapping[str, Any]) -> list[Table]:
    """Speed and memory, a table for each piece of work; `result` is `BenchResult.as_dict()`."""
    columns = ["model", "layers", "first token", "prefill", "speed-up", "decode", "speed-up", "memory", "KV/token"]
    tables = []
    for place, first in enumerate(result["measurements"][0]):
        rows = []
        for model, measured in zip(result["models"], result["measurements"]):
            row = measured[place]
            memory, seconds = row["memory_bytes"], row["prefill_seconds"]["median"]
            rows.append([Path(model["name"]).name, f"{model['layer_ratio']:.2f}x", f"{1e3 * seconds:,.1f} ms"])
            for stage in ("prefill", "decode"):
                rows[-1] += [f"{row[f'{stage}_tokens_per_second']:,.0f}", _speedup(row[f"{stage}_speedup"])]
            rows[-1] += [gigabytes(memory) if memory else "-", f"{row['cache_bytes_per_token']:,.0f} B"]
        work = first["work"]
        title = (
            f"{work['sequences']} x {work['tokens']:,} tokens read, {work['written']:,} more written; tokens per second"
        )
        tables.append(Table(rows, columns, title))
    return tables


def bench_note(result: Mapping[str, Any]) -> str:
    """What the numbers of a bench are."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return (
        f"Medians of {result['settings']['repeats']} rounds in turn, quartiles in brackets; layers: how many times fewer "
        f"parameters the layers have, which is the speed-up that they promise. {result['models'][0]['engine']}, {machine}."
    )


def _speedup(spread: Mapping[str, float] | None) -> str:
    """Median and quartiles."""
    return "-" if spread is None else "{median:.2f}x ({low:.2f}-{high:.2f})".format(**spread)


def gigabytes(size: int) -> str:
    """Bytes, in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def task_tables(comparison: TaskComparison) -> list[Table]:
    """What every model scored, and by how much it differs from the first, paired by document; averages come last."""
    told = ", ".join(f"{key} {value}" for key, value in comparison.settings.items() if key != "tasks")
    made = (
        _of_models(comparison.scores, comparison.average, ""),
        _of_models(comparison.differences, comparison.average_difference, next(iter(comparison.models))),
    )
    titles = ("lm-evaluation-harness, with standard errors", "Differences, paired by document")
    notes = (f"* counts in the average; {told}", PAIRED)
    return [
        Table(rows, heads, title, note, ("average", "average of *"))
        for (heads, rows), title, note in zip(made, titles, notes)
        if rows
    ]


def _of_models(
    scored: Mapping[str, Sequence[Any]], average: Callable[[str], Any], less: str
) -> tuple[list[str], list[list[str]]]:
    """Scores, or differences to the model `less`, side by side; of many models one below the other."""
    if not any(scored.values()):
        return [], []
    sign = "+" if less else ""
    averages = {model: average(model) for model in scored}
    if len(scored) + bool(less) > WIDE:
        counted = {model: [row for row in rows if row.counts] for model, rows in scored.items()}
        heads = [f"{row.task} {row.metric}" for row in next(iter(counted.values()))]
        rows = [
            [model, *(_value(row, sign) for row in found), _value(averages[model], sign)]
            for model, found in counted.items()
        ]
        return [f"model less {less}" if less else "model", *heads, "average"], rows
    rows = []
    for row in zip(*scored.values(), strict=True):
        first = row[0]
        asked = [] if less else [f"{first.questions:,}"]
        rows.append(
            [
                first.task,
                str(first.shots),
                f"{first.metric}{' *' * first.counts}",
                *asked,
                *(_value(each, sign) for each in row),
            ]
        )
    if None not in averages.values():
        rows.append(
            ["average of *", "", "", *([] if less else [""]), *(_value(each, sign) for each in averages.values())]
        )
    named = [f"{model} - {less}" for model in scored] if less else ["questions", *scored]
    return ["task", "shots", "metric", *named], rows


def _value(score: Any, sign: str = "") -> str:
    if score is None:
        return "-"
    number = f"{score.value:{sign}.4f}" if abs(score.value) < 1000 else f"{score.value:{sign}.4g}"
    return number + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
