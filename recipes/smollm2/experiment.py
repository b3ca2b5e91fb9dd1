"""What the files of settings say: folders, models, and the files of settings of single commands, written beside the results."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from darwinlm.comparison.methods.registry import METHODS, methods_named
from darwinlm.config import merge, settled
from darwinlm.config.quantities import quantity
from darwinlm.run.plan import level_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """One experiment and its folders."""

    values: dict[str, Any]
    """As in experiment.yaml."""
    output: Path
    text_folder: Path
    task_folder: Path
    file_name: str = "experiment.yaml"
    """The file whose settings count above those of experiment.yaml."""

    @property
    def dense(self) -> Path:
        """The checkpoint that all are made from."""
        return self.output / "dense"

    @property
    def compared(self) -> Path:
        """The run of all methods; its database is that of the other runs, too."""
        return self.output / "compare"

    def pruned(self, percent: int, *, refit: bool = True) -> Path:
        """The run of `darwinlm prune` at a size."""
        return self.output / f"prune-{percent}{'' if refit else '-unrefitted'}"

    def trained(self, name: str, percent: int) -> Path:
        """The run that trains a model of a size."""
        return self.output / f"distilled-{name}-{percent}"

    @property
    def methods(self) -> list[str]:
        """Names of those that are compared."""
        return [name for name in methods_named(self.values["methods"]) if name not in self.values["without"]]

    @functools.cached_property
    def levels(self) -> dict[int, float]:
        """{percent of the parameters: the level that `compare` takes for it}."""
        config = settled({"model": str(self.dense), "database": self.values["settings"].get("database", {})})
        return {p: level_of(config, quantity(f"{p}%", "parameters")) for p in self.values["sizes"]}

    def budget(self, percent: int) -> int:
        """Parameters that every method may leave: those of the uniform model."""
        budgets = json.loads((self.compared / "compare/compare.json").read_text())["budgets"]
        return next(number for level, number in budgets.items() if float(level) == self.levels[percent])

    def text(self, name: str) -> str:
        """A source of text: a file of the folder, or what `--data` takes."""
        return str(self.text_folder / name) if "." in name else name

    def needed(self, *names: str) -> tuple[Path, ...]:
        """Files of texts."""
        return tuple(self.text_folder / name for name in names if "." in name)

    def checkpoint(self, name: str, percent: int) -> Path:
        """The model of a method at a size, `now` and `unrefitted` among them."""
        if name in ("now", "unrefitted"):
            return self.pruned(percent, refit=name == "now") / "model"
        return self.compared / f"compare/{name}/level{self.levels[percent]:g}_seed0/model"

    def models(self) -> Iterator[dict[str, Any]]:
        """All checkpoints that there are: title, size, folder, and whether they were trained."""
        titles = {name: METHODS[name].title for name in self.methods}
        titles |= {name: f"{titles[name]}, as in the paper" for name in ("darwinlm",) if name in titles}
        titles |= {"unrefitted": "DarwinLM as it is now, without its refit", "now": "DarwinLM as it is now"}
        for percent in self.values["sizes"]:
            for name, title in titles.items():
                yield self._model(name, title, percent, self.checkpoint(name, percent), 0)
            if percent in self.values["distill"]["sizes"]:
                tokens = self.values["distill"]["train"]["tokens"]
                for name in self.values["distill"]["models"]:
                    yield self._model(name, titles[name], percent, self.trained(name, percent) / "model", tokens)

    def _model(self, name: str, title: str, percent: int, folder: Path, tokens: int) -> dict[str, Any]:
        return {"name": name, "title": title, "percent": percent, "folder": str(folder), "trained": tokens}

    def there(self) -> list[dict[str, Any]]:
        """Those of `models` that lie on the disk; models.json and told.json keep them, and words for places, for the page."""
        found = [model for model in self.models() if (Path(model["folder"]) / "config.json").exists()]
        self.file("models.json", found)
        places = {"TEXTS": str(self.text_folder), "TASKS": str(self.task_folder), "runs/smollm2": str(self.output)}
        self.file("told.json", {"settings": self.file_name, "places": places})
        return found

    def file(self, name: str, values: Any) -> str:
        """A file of settings for a command; returns its path."""
        path = self.output / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=1) if path.suffix == ".json" else yaml.safe_dump(values, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def settings(self, name: str) -> str:
        """The file of settings of `prune`, `compare`, `train`, `eval` or `bench`."""
        values = self.values
        scored = self.text(next(iter(values["texts"].values())))
        apart = {"held_out_data": scored} if scored != self.text(values["fit"]) else {}
        common = merge(values["settings"], {"blocks": apart})
        blocks = {key: common["blocks"][key] for key in ("sequence_length", "held_out")}
        of = {
            "prune": common,
            "compare": merge(common, values["paper"]),
            "train": {"blocks": {**blocks, **apart}, "train": values["distill"]["train"]},
            "eval": {"blocks": blocks},
            "bench": {"bench": values["bench"]["settings"]},
        }
        return self.file(f"{name}.yaml", of[name])


def read_experiment(output: Path, texts: Path, tasks: Path, more: Path | None) -> Experiment:
    """experiment.yaml, and above it a file that replaces what it names; results of other settings are refused.

    Args:
        output: folder of all results.
        texts: folder of texts.
        tasks: folder of tasks.
        more: such a file; None for experiment.yaml alone.
    """
    values = yaml.safe_load((HERE / "experiment.yaml").read_text(encoding="utf-8"))
    for name, value in (yaml.safe_load(more.read_text(encoding="utf-8")) if more else {}).items():
        both = name in ("settings", "paper", "distill", "bench", "tasks")
        values[name] = merge(values[name], value) if both else value
    return Experiment(values, output, texts, tasks, *([more.name] if more else []))
