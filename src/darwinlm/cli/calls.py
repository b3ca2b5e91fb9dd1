"""What each command does: call one function, print its tables. Imports wait until they are needed: torch is slow to load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from darwinlm.config import RunConfig, as_flags, with_shortcuts
from darwinlm.runtime import ranks
from darwinlm.runtime.output import PlainConsole, pasted

console = PlainConsole(width=None if sys.stdout and sys.stdout.isatty() else 110)


def prune(config: RunConfig, flags: dict[str, Any]) -> None:
    """All stages; of one target or of several."""
    from darwinlm import tables

    if flags["targets"]:
        family(config, flags)
        return
    from darwinlm.pipeline import run_prune

    summary = run_prune(config, rebuild=flags["rebuild"], restart=flags["restart"])
    if ranks.is_first():
        console.show(tables.summary(summary))
        console.show(f"The report lies in {pasted(config.path / 'report.html')}")
        next_command("eval", f"{config.output}/model", "--against", config.model, "--data", "OTHER_TEXT")


def family(config: RunConfig, flags: dict[str, Any]) -> None:
    """Several nested models."""
    from darwinlm import tables
    from darwinlm.nested import run_family

    members = run_family(config, flags["targets"], rebuild=flags["rebuild"], restart=flags["restart"])
    if ranks.is_first():
        console.show(tables.family(members))
        console.show(f"Numbers and picture lie in {pasted(config.path / 'family')}")
        next_command("eval", f"{members[-1].folder}/model", "--against", config.model, "--data", "OTHER_TEXT")


def database(config: RunConfig, flags: dict[str, Any]) -> None:
    """Build, check or show a level database."""
    from darwinlm import tables
    from darwinlm.pipeline import check_database, run_database

    if flags["check"] or flags["show"]:
        database, picture = check_database(config, draw=bool(flags["show"]))
        console.show(f"All {len(database.modules)} files of '{database.folder}' are whole.")
        if picture:
            console.show(tables.database(database))
            console.show(f"The picture lies in {pasted(picture)}")
        return
    console.show(tables.database(run_database(config, rebuild=flags["rebuild"])))
    next_command("search", "--output", config.output, *as_flags(config.target))


def search(config: RunConfig, flags: dict[str, Any]) -> None:
    """Search on a finished database."""
    from darwinlm import tables
    from darwinlm.pipeline import run_search

    console.show(tables.genome(run_search(config, restart=flags["restart"])))
    next_command("export", "--output", config.output)


def refit(config: RunConfig, flags: dict[str, Any]) -> None:
    """Refit what a search found."""
    from darwinlm import tables
    from darwinlm.pipeline import run_refit

    console.show(tables.refits(run_refit(config)))
    next_command("export", "--output", config.output)


def export(config: RunConfig, flags: dict[str, Any]) -> None:
    """Write the checkpoint and its other forms."""
    from darwinlm import tables
    from darwinlm.export.forms import Wanted
    from darwinlm.pipeline import run_export

    wanted = Wanted(bool(flags["portable"]), flags["format"] or "", flags["dtype"] or "")
    if forms := run_export(config, wanted):
        console.show(*tables.forms(forms))
        dense = config.model if config.output else "MODEL"
        next_command("eval", forms[0].path, "--against", dense)


def import_(config: RunConfig, flags: dict[str, Any]) -> None:
    """A foreign model as a checkpoint."""
    from darwinlm import tables
    from darwinlm.foreign.importing import import_foreign
    from darwinlm.foreign.masked import Imported

    given = {name: flags[name] or "" for name in ("configuration", "dtype")}
    imported = import_foreign(flags["source"] or "", config.output, model=config.model, **given)
    if isinstance(imported, Imported):
        console.show(*tables.imported(imported))
        next_command("eval", imported.folder, "--against", "MODEL", "--data", "TEXT")
        return
    console.show(*tables.imported_gguf(imported))
    next_command("prune", imported.folder, "--data", "TEXT", "--output", "RUN")


def train(config: RunConfig, flags: dict[str, Any]) -> None:
    """Post-training."""
    from darwinlm import tables
    from darwinlm.recovery.run import run_train

    summary = run_train(with_shortcuts(config, flags["tokens"], flags["teacher"], bool(flags["lora"])))
    if ranks.is_first():
        console.show(tables.trained(summary))
        dense = config.train.teacher or flags["teacher"] or "MODEL"
        next_command("eval", summary["model"], "--against", dense)


def evaluate(config: RunConfig, flags: dict[str, Any]) -> None:
    """Score a checkpoint."""
    from darwinlm import tables
    from darwinlm.evaluation import Asked, eval_folder, run_evaluation

    given = {name: value or "" for name, value in flags.items() if name != "output"}
    folder = eval_folder(config, flags["output"] or "")
    found = run_evaluation(config, Asked.typed(**given), folder)
    if found.qualities:
        console.show(tables.qualities(found.qualities, found.text))
    if found.tasks:
        console.show(*tables.tasks(found.tasks))
    if folder:
        found.save(folder)
        console.show(f"Numbers and tables lie in {pasted(folder / 'eval.json')} and eval.md.")


def recipe(config: RunConfig, flags: dict[str, Any]) -> None:
    """All steps of a recipe."""
    from darwinlm import tables
    from darwinlm.errors import RequestError
    from darwinlm.recipes.recipe import read_recipe
    from darwinlm.recipes.running import run_recipe

    if not flags["file"]:
        raise RequestError("No recipe is given: a file such as recipes/llama2_7b_to_2.7b.yaml.")
    results = run_recipe(read_recipe(flags["file"], flags["typed"]))
    if ranks.is_first():
        console.show(*tables.recipe_results(results))
        next_command("eval", results[-1]["model"], "--against", "MODEL", "--data", "OTHER_TEXT")


def plan(config: RunConfig, flags: dict[str, Any]) -> None:
    """Sizes, from the configuration alone."""
    from darwinlm import tables

    if flags["recipe"]:
        from darwinlm.recipes.prediction import predict_recipe
        from darwinlm.recipes.recipe import read_recipe

        console.show(*tables.recipe_plan(predict_recipe(read_recipe(flags["recipe"], flags["typed"]).resolved())))
        return
    import torch

    from darwinlm.planning import make_plan
    from darwinlm.recipes.prediction import predict_pruning
    from darwinlm.runtime.device import choose_device, device_name, measured_rate

    console.show(*tables.plan(make_plan(config)))
    predicted, device = predict_pruning(config), choose_device("auto")
    if device.type == "cpu" and config.plan.device is None and config.device in ("auto", "cpu"):
        threads = torch.get_num_threads()
        name = f"{device_name(device)}, {threads} thread{'s' * (threads > 1)}"
        console.show(tables.hours_here(predicted, measured_rate(device), name))
    console.show(tables.hours(predicted))


def bench(config: RunConfig, flags: dict[str, Any]) -> None:
    """Time checkpoints in turn; or modules, for a latency table."""
    from darwinlm import tables
    from darwinlm.measure.bench import run_bench, save_bench
    from darwinlm.measure.predicted import predictions
    from darwinlm.target.latency import LatencyTable

    folder = Path(flags["output"] or "runs/bench").expanduser()
    if flags["table"]:
        latency_table(config, folder)
        return
    predicting = LatencyTable.load(Path(flags["latency_table"]).expanduser()) if flags["latency_table"] else None
    models = [flags["against"], config.model] if flags["against"] else [config.model]
    result = run_bench(models, config)
    console.show(*tables.bench(result))
    if predicting:
        console.show(tables.predictions(predictions(result, predicting)))
    numbers, picture = save_bench(result, folder)
    console.show(f"The numbers lie in {pasted(numbers)} and their picture in {pasted(picture)}")


def latency_table(config: RunConfig, folder: Path) -> None:
    """Measure what modules of each width take."""
    from darwinlm import tables
    from darwinlm.measure.table import measure_table, save_table

    table = measure_table(config)
    path = save_table(table, folder)
    console.show(*tables.latency(table))
    next_command("prune", config.model, "--target.speedup", "2x", "--target.latency_table", path)


def compare(config: RunConfig, flags: dict[str, Any]) -> None:
    """Every method at the same sizes."""
    from darwinlm import tables
    from darwinlm.comparison import asked, run_compare

    given = {name: value for name, value in flags.items() if value is not None}
    comparison, folder = run_compare(config, asked(config, **given))
    console.show(*tables.comparison(comparison))
    console.show(f"Tables, numbers and pictures lie in {pasted(folder)}")


def report(config: RunConfig, flags: dict[str, Any]) -> None:
    """One HTML file."""
    from pathlib import Path

    from darwinlm.errors import RequestError
    from darwinlm.measure.report import write_report

    if not flags["run"]:
        raise RequestError("No run is given: darwinlm report RUN, with the folder that a command wrote by --output.")
    written = write_report(Path(flags["run"]).expanduser())
    console.show(f"The report lies in {pasted(written)}")


def demo(config: RunConfig, flags: dict[str, Any]) -> None:
    """Prune the embedded model."""
    from darwinlm import tables
    from darwinlm.demonstration import run_demo

    console.show(*tables.demo(run_demo(config)))
    console.show(f"This run lies in {pasted(config.output)}")
    next_command("prune", "MODEL", "--data", "DATA", "--preset", "quick", "--output", "runs/mine")


def next_command(*words: Any) -> None:
    """What to type next."""
    console.show(f"Next: {pasted('darwinlm', *words)}")
