"""The report's sections of folders that hold no search: a training, a family of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from darwinlm.measure.report_parts import Section, image, told_of
from darwinlm.measure.report_pictures import as_svg
from darwinlm.measure.report_tables import Table, quality_table
from darwinlm.recovery.history import curves_figure, read_history
from darwinlm.runtime.files import read_json
from darwinlm.runtime.rundir import RunDirectory

_ASKED = ("method", "tokens", "batch_tokens", "sequence_length", "learning_rate", "teacher", "distill_weight")


def is_training(directory: RunDirectory) -> bool:
    """Whether a folder is that of `darwinlm train`."""
    return (directory.path / "train").is_dir()


def training_sections(directory: RunDirectory, settings: dict[str, Any], summary: dict[str, Any]) -> Iterator[Section]:
    """What was asked of a training, how it went, and what came out."""
    with told_of(directory.config):
        train = settings["train"]
        rows = [[name, str(settings.get(name, ""))] for name in ("model", "data")]
        rows += [[name.replace("_", " "), f"{train[name]}"] for name in _ASKED if train.get(name)]
        asked = Section("asked", "Asked", tables=[Table(rows)])
    yield asked
    if summary:
        with told_of(directory.summary):
            named = {"as it was": summary["before"], f"after {summary['tokens']:,} tokens": summary["trained"]}
            scores = {label: {**row, "parameters": summary["parameters"]} for label, row in named.items()}
            table = quality_table(scores, ours=(list(named)[-1],), to="teacher")
        yield Section("quality", "Quality", "On held-out text.", tables=[table])
    history = directory.path / "train/history.jsonl"
    with told_of(history):
        lines = read_history(history)
        steps = [line["step"] for line in lines if "loss" in line]
        picture = as_svg("training", curves_figure, lines) if steps else ""
    if picture:
        yield Section("training", "The training", f"{max(steps):,} steps.", [Markup(picture)])


def training_tiles(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers at the top of a training's page."""
    tiles = [("tokens", f"{summary['tokens']:,}")]
    for key, label in (("before", "before"), ("trained", "after")):
        tiles.append((f"perplexity, {label}", f"{summary[key]['perplexity']:.2f}"))
    if summary["trained"].get("kl") is not None:
        tiles.append(("KL to teacher", f"{summary['trained']['kl']:.4f}"))
    return tiles


def family_sections(path: Path) -> Iterator[Section]:
    """The models of a family side by side."""
    file, picture = path / "family/family.json", path / "family/family.png"
    if not file.exists():
        return
    with told_of(file):
        found = read_json(file)
        rows = {"dense": found["dense"]}
        for member in found["members"]:
            rows |= {member["target"]: member["pruned"], f"{member['target']}, uniform": member["uniform"]}
        targets = tuple(member["target"] for member in found["members"])
        text = "Each smaller model keeps a part of what the next larger one keeps; a folder in family/ for each."
        table = quality_table(rows, ours=targets)
    yield Section("family", "A family of models", text, [image(picture)] if picture.exists() else [], [table])
