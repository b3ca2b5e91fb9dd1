"""The page of an experiment from the results that are there: python recipes/smollm2/page.py runs/smollm2 docs/smollm2.md

Every number is read from a file of the results; what is not there yet is left out. Pictures go to `pictures/` beside the page.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pictures import draw_sizes, draw_training

from darwinlm.measure.tables import quality_cells
from darwinlm.measure.timing import Spread
from darwinlm.runtime.files import write_text
from darwinlm.runtime.progress import duration

Table = tuple[list[str], list[list[str]]]


class Results:
    """What lies in a folder of results.

    Args:
        folder: that `run.py` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: list[dict[str, Any]] = self.read("settings/models.json") or []
        found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("eval/*/eval.json"))}
        self.tasks: dict[str, Any] = next((values["tasks"] for values in found.values() if values.get("tasks")), {})
        self.texts = {name: values["qualities"] for name, values in found.items()}
        self.told: dict[str, Any] = self.read("settings/told.json") or {"settings": "experiment.yaml", "places": {}}
        self.compared: dict[str, Any] = self.read("compare/compare/compare.json") or {}
        for model in self.models:
            model["label"] = "model" if model is self.models[0] else model["folder"]

    def read(self, name: str) -> Any:
        """A JSON file; None where it is not there."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def dense(self) -> dict[str, Any]:
        """The model that all were made from, as one of `models`."""
        return {"name": "dense", "title": "dense", "label": "dense", "trained": 0, "percent": 100}

    def quality(self, model: dict[str, Any], text: str) -> dict[str, Any] | None:
        """{parameters, perplexity, kl} on a text."""
        return self.texts[text].get(model["label"])

    def parameters(self, model: dict[str, Any]) -> int | None:
        """Of a model that was scored on some text."""
        return next((found["parameters"] for text in self.texts if (found := self.quality(model, text))), None)

    def score(self, model: dict[str, Any], task: str) -> dict[str, Any] | None:
        """A task's score that counts."""
        rows = self.tasks.get("scores", {}).get(model["label"], [])
        return next((row for row in rows if row["task"] == task and row["counts"]), None)

    @property
    def task_names(self) -> list[str]:
        """Those that count in the average."""
        rows = next(iter(self.tasks.get("scores", {}).values()), [])
        return [row["task"] for row in rows if row["counts"]]


def main() -> None:
    results, page = Results(Path(sys.argv[1])), Path(sys.argv[2])
    pictures = page.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [_head(results), _sizes(results, pictures), _training(results, pictures), _ways(results), _speed(results)]
    write_text(page, "\n\n".join(part for part in (*parts, _chat(results), _time(results)) if part) + "\n")
    print(f"The page lies in {page}")


def _head(results: Results) -> str:
    lines = [
        "# SmolLM2-135M-Instruct",
        "Written by `recipes/smollm2/page.py` from the results of `recipes/smollm2/run.py`, with the settings of "
        f"`recipes/smollm2/{results.told['settings']}`; `--list` names the steps.",
    ]
    if tasks := results.tasks:
        settings = ", ".join(f"{key} {value}" for key, value in tasks["settings"].items())
        lines.append(f"Tasks: {settings}. Errors behind ±: standard errors over the rows; {tasks['paired']}.")
    if not results.models:
        lines.append("There are no results yet.")
    lines.append(
        "No dense model of the pruned sizes stands beside them: the package that brings this one has no other."
    )
    return "\n\n".join(lines)


def _sizes(results: Results, pictures: Path) -> str:
    """Tables 1 and 2 and figure 4 of the paper."""
    found = ["## Methods at the same sizes"] if results.models else []
    if results.compared.get("rows") or results.texts:
        draw_sizes(results, pictures / "smollm2_sizes.png")
        found.append("![Perplexity against parameters](pictures/smollm2_sizes.png)")
    for percent in dict.fromkeys(model["percent"] for model in results.models):
        models = [results.dense, *(m for m in results.models if m["percent"] == percent and not m["trained"])]
        found += [f"### {percent} % of the parameters", *_scored(results, models)]
        found += _unkept(results, percent, {model["name"] for model in models})
    return "\n\n".join(found)


def _scored(results: Results, models: list[dict[str, Any]]) -> Iterator[str]:
    """Two tables: on text, and at tasks."""
    heads, rows = ["model", "parameters"], []
    for text in results.texts:
        heads += [f"{text}: perplexity", "KL to dense"]
    for model in models:
        rows.append([model["title"], f"{number:,}" if (number := results.parameters(model)) else "-"])
        for text in results.texts:
            one = results.quality(model, text)
            rows[-1] += quality_cells(one) if one else ["-", "-"]
    if results.texts:
        yield table(heads, rows)
    if results.tasks:
        heads = [
            "model",
            *(name.removeprefix("local_") for name in results.task_names),
            "average",
            "less dense, paired",
        ]
        rows = []
        for model in models:
            scores = [results.score(model, task) for task in results.task_names]
            rows.append([model["title"], *(measured(one) for one in scores), *_averages(results, model["label"])])
        yield table(heads, rows)


def _averages(results: Results, label: str) -> list[str]:
    tasks = results.tasks
    average = {"value": tasks["averages"].get(label), "stderr": tasks["average_errors"].get(label)}
    return [measured(average), measured(tasks["average_differences"].get(label), "+")]


def _unkept(results: Results, percent: int, shown: set[str]) -> Iterator[str]:
    """Rows of methods whose models no checkpoint holds; their level is that of the others of this size."""
    levels = {Path(m["folder"]).parent.name.split("_")[0] for m in results.models if m["percent"] == percent}
    rows = [
        [row["title"], f"{row['parameters']:,.0f}", f"{row['perplexity']:,.2f}", f"{row['kl']:.4f}"]
        for row in results.compared.get("rows", [])
        if f"level{row['level']:g}" in levels and row["method"] not in shown
    ]
    if rows:
        yield table(["method without a checkpoint", "parameters", "perplexity, first text", "KL to dense"], rows)


def _training(results: Results, pictures: Path) -> str:
    """Figure 3 of the paper."""
    trained = [model for model in results.models if model["trained"]]
    if not trained:
        return ""
    draw_training(results, trained, pictures / "smollm2_training.png")
    tokens = trained[0]["trained"]
    models = [results.dense, *(m for m in results.models if any(_same(m, t) for t in trained))]
    rows = [{**m, "title": f"{m['title']}, trained" if m["trained"] else m["title"]} for m in models]
    return "\n\n".join(
        [
            "## After the same training",
            f"Distilled on {tokens:,} tokens, all on the same ones.",
            "![Perplexity and average against tokens](pictures/smollm2_training.png)",
            *_scored(results, rows),
        ]
    )


def _same(model: dict[str, Any], trained: dict[str, Any]) -> bool:
    return (model["name"], model["percent"]) == (trained["name"], trained["percent"])


def _ways(results: Results) -> str:
    """Table 4 of the paper."""
    ways = {
        "darwinlm": "selection with training",
        "now": "selection without training, refit",
        "unrefitted": "selection without training, no refit",
        "darwinlm_untrained": "evolution without training",
    }
    chosen = [
        m for m in results.models if m["name"] in ways and any(_same(m, t) and t["trained"] for t in results.models)
    ]
    if not {"darwinlm", "darwinlm_untrained"} & {model["name"] for model in chosen}:
        return ""
    rows = []
    for model in chosen:
        text = next(iter(results.texts), None)
        one = results.quality(model, text) if text else None
        told = f"{model['trained']:,} tokens" if model["trained"] else "at once"
        numbers = quality_cells(one) if one else ["-", "-"]
        averages = _averages(results, model["label"]) if results.tasks else ["-", "-"]
        rows.append([ways[model["name"]], f"{model['percent']} %", told, *numbers, *averages])
    heads = ["way to choose", "size", "trained", "perplexity", "KL to dense", "average", "less dense, paired"]
    return f"## What training in the search is worth\n\n{table(heads, rows)}" if rows else ""


def _speed(results: Results) -> str:
    rows = []
    for path in sorted(results.folder.glob("bench/*/bench.json")):
        bench = json.loads(path.read_text(encoding="utf-8"))
        for model, measured_rows in zip(bench["models"], bench["measurements"]):
            one = measured_rows[0]
            rows.append(
                [
                    path.parent.name,
                    Path(model["name"]).name,
                    model["engine"].split(",")[0],
                    f"{model['layer_ratio']:.2f}x",
                ]
            )
            for stage in ("prefill", "decode"):
                gain = one[f"{stage}_speedup"]
                rows[-1] += [
                    f"{one[f'{stage}_tokens_per_second']:,.0f}",
                    f"{Spread(**gain).median:.2f}x" if gain else "-",
                ]
            memory, size = one["memory_bytes"], _bytes(model)
            rows[-1] += [f"{memory / 1e6:,.0f} MB" if memory else "-", f"{size / 1e6:,.0f} MB" if size else "-"]
    heads = [
        "size",
        "model",
        "engine",
        "fewer in layers",
        "prefill tok/s",
        "speed-up",
        "decode tok/s",
        "speed-up",
        "memory",
        "file",
    ]
    return f"## Speed\n\nMedians of models in turn on two cores.\n\n{table(heads, rows)}" if rows else ""


def _bytes(model: dict[str, Any]) -> int:
    """Of what the engine opened; 0 where it made itself a file of the checkpoint."""
    path = Path(model["name"])
    if path.is_dir() and model["engine"].startswith("llama.cpp"):
        return 0
    files = path.glob("*.safetensors") if path.is_dir() else [path] if path.exists() else []
    return sum(file.stat().st_size for file in files)


def _chat(results: Results) -> str:
    answers: dict[str, list[dict[str, str]]] = results.read("chat.json") or {}
    if not answers:
        return ""
    titles = {
        Path(m["folder"]): f"{m['title']}, {m['percent']} %{', trained' * bool(m['trained'])}" for m in results.models
    }
    lines = ["## Chat", "Through the chat template, greedy, at most 120 tokens, as they are."]
    for place, asked in enumerate(next(iter(answers.values()))):
        lines.append(f"**{asked['prompt']}**")
        for name, given in answers.items():
            text = given[place]["answer"].strip().replace("\n", "\n> ")
            lines.append(f"{titles.get(Path(name), 'dense')}:\n\n> {text}")
    return "\n\n".join(lines)


def _time(results: Results) -> str:
    rows, commands = [], []
    for path in sorted(results.folder.glob("done/*.json"), key=lambda path: path.stat().st_mtime):
        done = json.loads(path.read_text(encoding="utf-8"))
        threads = " and ".join(map(str, done.get("threads", "-")))  # older steps did not note them
        rows.append([path.stem, duration(done["seconds"]), threads, f"{done['peak_memory_bytes'] / 1e9:.2f} GB"])
        commands += [shlex.join(["darwinlm", *c[3:]]) if c[1:3] == ["-m", "darwinlm"] else "" for c in done["commands"]]
    if not rows:
        return ""
    typed = "\n".join(command for command in commands if command)
    for word, place in results.told["places"].items():
        typed = typed.replace(place, word)
    taken = table(["step", "time", "threads", "peak memory"], rows)
    return f"## Time and memory\n\n{taken}\n\n## Commands\n\n```bash\n{typed}\n```"


def measured(score: dict[str, Any] | None, sign: str = "") -> str:
    """A value with its standard error."""
    if not score or score["value"] is None:
        return "-"
    return f"{score['value']:{sign}.3f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.3f}")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    heads = list(heads)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


if __name__ == "__main__":
    main()
