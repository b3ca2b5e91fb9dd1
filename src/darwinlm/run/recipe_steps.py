"""A recipe, run: the steps in order, each continued where it stopped; finished ones are not opened again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from darwinlm.config import RunConfig, to_dict
from darwinlm.errors import RequestError
from darwinlm.recovery.run import run_train
from darwinlm.run.prediction import predict_recipe
from darwinlm.run.pruning import run_prune
from darwinlm.run.recipe import COMMANDS, Recipe, Step
from darwinlm.runtime import ranks
from darwinlm.runtime.files import read_json, write_json
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import require_same

RECORD = "recipe.json"
"""What every finished step was asked for, and how it ended."""
RUN: dict[str, Callable[[RunConfig], dict[str, Any]]] = {"prune": run_prune, "train": run_train}
_NOT_THE_RESULT = ("device", "bench", "plan")


def run_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """Run the steps that are not finished.

    Args:
        recipe: what is asked.

    Returns:
        For every step {`step`, `model`, `parameters`, `perplexity`, `kl`}: its checkpoint and the scores on its own
        held-out text. Ranks other than the first get nothing.

    Raises:
        RequestError: a step cannot be, which is found before the first one begins; or a finished one was another one.
    """
    ranks.join()
    steps = recipe.resolved()
    predict_recipe(steps)  # sizes that do not fit each other are found now, not after days
    if missing := [f"'{recipe.path}': no data is given: add --data." for step in steps[:1] if not step.config.data]:
        raise RequestError(*missing)
    record = recipe.output / RECORD
    done = ranks.all_gather(read_json(record) if record.exists() else {})[0]
    for step in steps:
        _check_same(done, step, recipe.output)
    log.info("%d steps in '%s': %s.", len(steps), recipe.output, ", ".join(step.name for step in steps))
    for step in steps:
        if step.name in done:
            log.info("Step %s is finished: %s", step.name, done[step.name]["result"]["model"])
            continue
        log.info("Step %s of %d: darwinlm %s %s", step.name, len(steps), step.command, step.config.model)
        summary = RUN[step.command](step.config)
        if ranks.is_first():
            done[step.name] = {"settings": _settings(step), "result": _result(step, summary)}
            write_json(record, done)
        ranks.barrier()
    return [done[step.name]["result"] for step in steps] if ranks.is_first() else []


def _check_same(done: dict[str, Any], step: Step, output: Path) -> None:
    """A finished step must be the one that is asked for, and its checkpoint must be there."""
    if step.name not in done:
        return
    remedy = f"Choose another --output, or delete its folder and '{output / RECORD}' to run it again."
    require_same(done[step.name]["settings"], _settings(step), output / step.name, "a finished step", remedy)
    if not Path(done[step.name]["result"]["model"]).is_dir():
        raise RequestError(
            f"Step {step.name} is finished, but '{done[step.name]['result']['model']}' is gone. {remedy}"
        )


def _settings(step: Step) -> dict[str, Any]:
    """What the result of a step depends on, flat, so that a difference is named by its setting."""
    flat: dict[str, Any] = {"command": step.command}
    for key, value in to_dict(step.config).items():
        if key in _NOT_THE_RESULT or key in COMMANDS[step.command]:
            continue
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _result(step: Step, summary: dict[str, Any]) -> dict[str, Any]:
    """How a step ended, in the same words for all commands."""
    scores = summary["pruned"] if step.command == "prune" else summary["trained"]
    return {
        "step": step.name,
        "model": str(step.config.path / "model"),
        "parameters": scores.get("parameters", summary.get("parameters")),
        "perplexity": scores["perplexity"],
        "kl": scores.get("kl"),
    }
