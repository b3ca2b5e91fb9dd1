"""A recipe: an experiment of several steps, each on the model that the step before it left.

    model: meta-llama/Llama-2-7b-hf
    data: fineweb-edu
    output: runs/llama2                       # by default runs/, and the name of the file
    preset: paper
    settings: {database: {levels: 10}}        # of every step
    steps:
      - prune: {target: {level: 5}}           # settings of this step alone
      - train: {train: {tokens: 10B}}

A step is one of `COMMANDS`. Its folder is OUTPUT/NUMBER-COMMAND, such as `1-prune`, and is the run directory that
the command of that name would make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darwinlm.config import RunConfig, merge, preset_values, read_yaml, resolve
from darwinlm.errors import RequestError

COMMANDS: dict[str, tuple[str, ...]] = {
    "prune": ("train",),
    "train": ("database", "target", "search"),
}
"""What a step may do, and the groups of settings that do not count for it."""
_FIELDS = ("model", "data", "output", "preset", "settings", "steps")
_PLACES = ("model", "output")


@dataclass(frozen=True)
class Step:
    """One step, with its settings resolved."""

    name: str
    """Its folder, such as `1-prune`."""
    command: str
    config: RunConfig


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was written."""

    path: Path
    steps: list[tuple[str, dict[str, Any]]]
    """(command, settings) of every step."""
    common: dict[str, Any]
    """Settings of every step; `model`, `data` and `output` of the whole."""
    preset: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    """What was typed: goes above all that the file says."""

    @property
    def output(self) -> Path:
        """The folder of all steps; by default named after the file."""
        asked = merge(self.common, self.overrides).get("output")
        return Path(asked or f"runs/{self.path.stem}").expanduser()

    def resolved(self) -> list[Step]:
        """The steps with all their settings.

        Raises:
            RequestError: settings are unknown or impossible; names the step.
        """
        found: list[Step] = []
        faults: list[str] = []
        preset = preset_values(self.preset) if self.preset else {}
        model = merge(self.common, self.overrides)["model"]
        for number, (command, settings) in enumerate(self.steps, start=1):
            name = f"{number}-{command}"
            folder = {"model": model, "output": str(self.output / name)}
            try:
                config = resolve(
                    preset, self.common, settings, self.overrides, folder, without=(*COMMANDS[command], "bench")
                )
                found.append(Step(name, command, config))
            except RequestError as fault:
                faults += [f"'{self.path}', step {name}: {message}" for message in fault.faults]
            model = str(self.output / name / "model")
        if faults:
            raise RequestError(*faults)
        return found


def read_recipe(path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: of the YAML file.
        overrides: settings that go above those of every step, nested as in `config.yaml`.

    Raises:
        RequestError: it is no recipe; names all that is wrong.
    """
    file, given = Path(path).expanduser(), dict(overrides or {})
    values = read_yaml(file)
    if "steps" not in values:
        raise RequestError(f"'{file}' has no `steps`, so it is no recipe. Give settings without steps by --config.")
    faults = [
        f"There is no field '{key}' in a recipe; there are: {', '.join(_FIELDS)}."
        for key in values
        if key not in _FIELDS
    ]
    settings = values.get("settings") or {}
    if not isinstance(settings, dict):
        faults.append("`settings` must be a group of settings, such as {database: {levels: 10}}.")
        settings = {}
    steps = _steps(values["steps"], faults)
    common = {**settings, **{key: values[key] for key in ("model", "data", "output") if values.get(key)}}
    if not merge(common, given).get("model"):
        faults.append("No model is given: write `model:` into the recipe, or add --model.")
    if faults:
        raise RequestError(*(f"'{file}': {fault}" for fault in faults))
    return Recipe(file, steps, common, values.get("preset"), given)


def _steps(listed: Any, faults: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(command, settings) of every step; what is wrong goes to `faults`."""
    if not isinstance(listed, list) or not listed:
        faults.append("`steps` must be a list with a line such as `- prune: {target: {level: 5}}` for each step.")
        return []
    steps: list[tuple[str, dict[str, Any]]] = []
    for number, step in enumerate(listed, start=1):
        step = {step: None} if isinstance(step, str) else step
        if not isinstance(step, dict) or len(step) != 1 or next(iter(step)) not in COMMANDS:
            faults.append(f"Step {number} is {step!r}; it must be one of {', '.join(COMMANDS)} with its settings.")
            continue
        ((command, settings),) = step.items()
        if not isinstance(settings or {}, dict):
            faults.append(f"Step {number}, {command}, has {settings!r}; it must be a group of settings.")
        elif places := [key for key in _PLACES if key in (settings or {})]:
            faults.append(
                f"Step {number}, {command}, names its own {places[0]}; a step goes on from the one before it."
            )
        else:
            steps.append((command, settings or {}))
    return steps
