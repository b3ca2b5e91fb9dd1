"""DarwinLM: training-aware, evolutionary structured pruning of large language models (arXiv 2502.07780).

    import darwinlm

    summary = darwinlm.prune("Qwen/Qwen3-0.6B", data="fineweb-edu", output="runs/qwen3", target={"level": 5})

Every command of the command line has such a twin; settings are given as in `config.yaml`, groups as dictionaries.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from darwinlm.errors import CalibrationError, DamagedFileError, DarwinLMError, RequestError

__version__ = "0.1.0"
__all__ = [
    "CalibrationError",
    "DamagedFileError",
    "DarwinLMError",
    "RequestError",
    "bench",
    "build_database",
    "compare",
    "convert_checkpoint",
    "demo",
    "evaluate",
    "export_checkpoint",
    "import_checkpoint",
    "measure_latency",
    "plan",
    "plan_recipe",
    "prune",
    "prune_family",
    "refit_genome",
    "report",
    "run_recipe",
    "search_genome",
    "train",
]


def _config(preset: str | None, settings: dict[str, Any], without: tuple[str, ...] = ()) -> Any:
    from darwinlm.runtime.rundir import settled

    given = {key: value for key, value in settings.items() if value != ""}
    return settled(_paths(given), preset=preset, without=without)


def _paths(settings: dict[str, Any]) -> dict[str, Any]:
    """With paths as text."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in settings.items()}


def prune(model: str = "", *, preset: str | None = None, rebuild: bool = False, restart: bool = False, **settings: Any):
    """Prune a model: all stages in order; returns what `summary.json` holds."""
    from darwinlm.pipeline import run_prune

    return run_prune(_config(preset, {"model": model, **settings}), rebuild=rebuild, restart=restart)


def prune_family(
    model: str = "",
    *,
    targets: str | list[Any],
    preset: str | None = None,
    rebuild: bool = False,
    restart: bool = False,
    **settings: Any,
):
    """Prune a model to several targets at once, each smaller model nested in the larger; returns them, largest first.

    `targets` are of one kind, in a list or with commas: `["3B", "4B"]`, `"40%,60%"`, `"1.5x,2x"`, or levels.
    """
    from darwinlm.nested import run_family

    typed = targets if isinstance(targets, str) else ",".join(map(str, targets))
    config = _config(preset, {"model": model, **settings}, ("target",))
    return run_family(config, typed, rebuild=rebuild, restart=restart)


def build_database(model: str = "", *, preset: str | None = None, rebuild: bool = False, **settings: Any):
    """Build the level database of a run; returns it."""
    from darwinlm.pipeline import run_database

    return run_database(_config(preset, {"model": model, **settings}), rebuild=rebuild)


def search_genome(output: str, *, preset: str | None = None, restart: bool = False, **settings: Any):
    """Search on the database of a run directory; returns {module name: level}."""
    from darwinlm.pipeline import run_search

    return run_search(_config(preset, {"output": output, **settings}), restart=restart)


def refit_genome(output: str, *, preset: str | None = None, **settings: Any):
    """Refit the output matrices of a run's genome on its own inputs, `refit={"tokens": N}`; returns `Refits`."""
    from darwinlm.pipeline import run_refit

    return run_refit(_config(preset, {"output": output, **settings}))


def export_checkpoint(output: str, *, portable: bool = False, format: str = "", dtype: str = "", **settings: Any):
    """Write the checkpoint of a run directory's genome, and other forms of it beside; returns its folder."""
    from darwinlm.export.forms import Wanted
    from darwinlm.pipeline import run_export

    run_export(config := _config(None, {"output": output, **settings}), Wanted(portable, format, dtype))
    return config.path / "model"


def convert_checkpoint(folder: str, *, portable: bool = False, format: str = "", dtype: str = ""):
    """Write other forms of a checkpoint beside it; returns what lies there now, the checkpoint itself first."""
    from pathlib import Path

    from darwinlm.export.forms import Wanted, write_forms

    return write_forms(Path(folder).expanduser(), Wanted(portable, format, dtype))


def import_checkpoint(source: str, output: str, *, model: str = "", configuration: str = "", dtype: str = ""):
    """Write a GGUF file as a checkpoint, or a masked model or the authors' level database as a really smaller one.

    Returns what was found.
    """
    from darwinlm.foreign.importing import import_foreign

    places = {"model": os.fspath(model), "configuration": os.fspath(configuration)}
    return import_foreign(os.fspath(source), os.fspath(output), dtype=dtype, **places)


def train(model: str = "", *, preset: str | None = None, **settings: Any):
    """Train a checkpoint, `train={"tokens": "50M", "teacher": "..."}`; returns what `summary.json` holds.

    The result lies in `output`/model: by default in `trained` of the run whose checkpoint it is, else beside it.
    """
    from darwinlm.recovery.request import WITHOUT
    from darwinlm.recovery.run import run_train

    return run_train(_config(preset, {"model": model, **settings}, WITHOUT))


def evaluate(
    model: str,
    *,
    against: str = "",
    beside: Sequence[str | os.PathLike[str]] = (),
    tasks: str = "",
    include_path: str | os.PathLike[str] = "",
    limit: int | None = None,
    batch_size: int | None = None,
    apply_chat_template: bool = False,
    output: str | os.PathLike[str] = "",
    **settings: Any,
):
    """Perplexity of a checkpoint on held-out text, its KL to the model it was pruned from, and both at tasks.

    Models in `beside` get the same text and requests. Without `tasks` the result is {`dense`, `model`, further names:
    `Quality`}; with `tasks` (`paper`, or names such as `hellaswag@10,piqa`) it is an `Evaluation` that holds these, the scores
    and their differences paired by document. `output` is a folder for all of it; what lies there is not made again.
    """
    from pathlib import Path

    from darwinlm.evaluation import Asked, run_evaluation

    config = _config(None, {"model": model, **settings}, ("database", "target", "search"))
    others = ",".join(os.fspath(path) for path in beside)
    asked = Asked.typed(
        os.fspath(against), tasks, os.fspath(include_path), limit, batch_size, apply_chat_template, others
    )
    folder = Path(output).expanduser() if output else None
    found = run_evaluation(config, asked, folder)
    if folder:
        found.save(folder)
    return found if tasks else found.qualities


def bench(model: str, *, against: str = "", output: str | os.PathLike[str] = "", **settings: Any):
    """Speed and memory of a checkpoint or .gguf file, beside the dense one's, in turn; returns a `BenchResult`.

    `bench={...}` sets batch sizes, context lengths and rounds; `output` is a folder for the numbers and their picture.
    """
    from pathlib import Path

    from darwinlm.measure.bench import run_bench, save_bench

    config = _config(None, {"model": model, **settings}, ("database", "target", "search"))
    names = [os.fspath(against), config.model] if against else [config.model]
    result = run_bench(names, config)
    if output:
        save_bench(result, Path(output).expanduser())
    return result


def measure_latency(model: str, output: str | os.PathLike[str] = "runs/bench", **settings: Any):
    """What every width of a module takes on this machine; returns the path of the table, for `target={"speedup": ...}`.

    `bench={...}` sets the workloads, `database={...}` which widths there are.
    """
    from pathlib import Path

    from darwinlm.measure.table import measure_table, save_table

    config = _config(None, {"model": model, **settings}, ("target", "search"))
    return save_table(measure_table(config), Path(output).expanduser())


def compare(
    model: str = "",
    *,
    methods: str = "all",
    levels: Any = "",
    train_tokens: int = 0,
    learning_rate: float = 3e-5,
    seeds: int = 1,
    keep_models: bool = False,
    preset: str | None = None,
    **settings: Any,
):
    """Every method of the paper's comparisons on one model; returns a `Comparison`, whose `rows` are the table.

    `methods` are names with commas, or `all`; `levels` a list or numbers with commas; `train_tokens` and `learning_rate` a
    post-training after which all are scored again; `seeds` the runs of every method that searches, whose mean is reported;
    `keep_models` writes every method's model as a checkpoint, too.
    """
    from darwinlm.comparison import asked, run_compare

    config = _config(preset, {"model": model, **settings}, ("target",))
    listed = levels if isinstance(levels, str) else ",".join(map(str, levels if isinstance(levels, list) else [levels]))
    return run_compare(
        config, asked(config, methods, listed, str(train_tokens), str(learning_rate), str(seeds), keep_models)
    )[0]


def report(run: str | os.PathLike[str]):
    """Write `report.html` of a run directory, finished or not; returns its path."""
    from pathlib import Path

    from darwinlm.measure.report import write_report

    return write_report(Path(run).expanduser())


def plan(model: str, *, preset: str | None = None, **settings: Any):
    """Sizes, disk, memory and tokens of a run, from the model's configuration alone."""
    from darwinlm.planning import make_plan

    return make_plan(_config(preset, {"model": model, **settings}))


def run_recipe(file: str | os.PathLike[str], **overrides: Any):
    """Run the steps of a recipe that are not finished; returns for each its checkpoint and its scores.

    `overrides` go above the settings of every step, such as `model=...`, `data=...`, `output=...`, `seed=1`.
    """
    from darwinlm.recipes.recipe import read_recipe
    from darwinlm.recipes.running import run_recipe

    return run_recipe(read_recipe(os.fspath(file), _paths(overrides)))


def plan_recipe(file: str | os.PathLike[str], **overrides: Any):
    """What the steps of a recipe will take, from the configuration of its model alone; `overrides` as in `run_recipe`."""
    from darwinlm.recipes.prediction import predict_recipe
    from darwinlm.recipes.recipe import read_recipe

    return predict_recipe(read_recipe(os.fspath(file), _paths(overrides)).resolved())


def demo(output: str = "runs/demo", **settings: Any):
    """Prune the embedded model and compare it with the dense and the uniformly pruned one."""
    from darwinlm.demonstration import run_demo

    return run_demo(_config("demo", {"output": output, **settings}))
