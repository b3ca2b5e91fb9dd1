"""What each command does: call one function, print its tables. Imports wait until they are needed: torch is slow to load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from darwinlm.config import RunConfig, as_flags, with_shortcuts
from darwinlm.runtime import ranks

console = Console(width=None if sys.stdout and sys.stdout.isatty() else 110)


def prune(config: RunConfig, flags: dict[str, Any]) -> None:
    """All stages; of one target or of several."""
    from darwinlm import tables

    if flags["targets"]:
        family(config, flags)
        return
    from darwinlm.pipeline import run_prune

    summary = run_prune(config, rebuild=flags["rebuild"], restart=flags["restart"])
    if ranks.is_first():
        console.print(tables.summary(summary))
        console.print(f"The report lies in {config.output}/report.html.", highlight=False, soft_wrap=True)
        next_command(f"darwinlm eval {config.output}/model --against {config.model} --data OTHER_TEXT")


def family(config: RunConfig, flags: dict[str, Any]) -> None:
    """Several nested models."""
    from darwinlm import tables
    from darwinlm.nested import run_family

    members = run_family(config, flags["targets"], rebuild=flags["rebuild"], restart=flags["restart"])
    if ranks.is_first():
        console.print(tables.family(members))
        console.print(f"Numbers and picture lie in {config.path / 'family'}.", highlight=False, soft_wrap=True)
        next_command(f"darwinlm eval {members[-1].folder}/model --against {config.model} --data OTHER_TEXT")


def database(config: RunConfig, flags: dict[str, Any]) -> None:
    """Build, check or show a level database."""
    from darwinlm import tables
    from darwinlm.pipeline import check_database, run_database

    if flags["check"] or flags["show"]:
        database, picture = check_database(config, draw=bool(flags["show"]))
        console.print(f"All {len(database.modules)} files of '{database.folder}' are whole.")
        if picture:
            console.print(tables.database(database))
            console.print(f"The picture lies in {picture}")
        return
    console.print(tables.database(run_database(config, rebuild=flags["rebuild"])))
    next_command(f"darwinlm search --output {config.output} {as_flags(config.target)}")


def search(config: RunConfig, flags: dict[str, Any]) -> None:
    """Search on a finished database."""
    from darwinlm import tables
    from darwinlm.pipeline import run_search

    console.print(tables.genome(run_search(config, restart=flags["restart"])))
    next_command(f"darwinlm export --output {config.output}")


def refit(config: RunConfig, flags: dict[str, Any]) -> None:
    """Refit what a search found."""
    from darwinlm import tables
    from darwinlm.pipeline import run_refit

    console.print(tables.refits(run_refit(config)))
    next_command(f"darwinlm export --output {config.output}")


def export(config: RunConfig, flags: dict[str, Any]) -> None:
    """Write the checkpoint and its other forms."""
    from darwinlm import tables
    from darwinlm.export.forms import Wanted
    from darwinlm.pipeline import run_export

    wanted = Wanted(bool(flags["portable"]), flags["format"] or "", flags["dtype"] or "")
    if forms := run_export(config, wanted):
        for line in tables.forms(forms):
            console.print(line)
        dense = config.model if config.output else "MODEL"
        next_command(f"darwinlm eval {forms[0].path} --against {dense}")


def import_(config: RunConfig, flags: dict[str, Any]) -> None:
    """A foreign model as a checkpoint."""
    from darwinlm import tables
    from darwinlm.foreign.masked import import_model

    imported = import_model(
        flags["source"] or "", config.output, model=config.model, configuration=flags["configuration"] or ""
    )
    console.print(tables.imported(imported))
    next_command(f"darwinlm eval {imported.folder} --against MODEL --data TEXT")


def train(config: RunConfig, flags: dict[str, Any]) -> None:
    """Post-training."""
    from darwinlm import tables
    from darwinlm.recovery.run import run_train

    summary = run_train(with_shortcuts(config, flags["tokens"], flags["teacher"], bool(flags["lora"])))
    if ranks.is_first():
        console.print(tables.trained(summary))
        dense = config.train.teacher or flags["teacher"] or "MODEL"
        next_command(f"darwinlm eval {summary['model']} --against {dense}")


def evaluate(config: RunConfig, flags: dict[str, Any]) -> None:
    """Score a checkpoint."""
    from darwinlm import tables
    from darwinlm.evaluation import Asked, eval_folder, run_evaluation

    given = {name: value or "" for name, value in flags.items() if name != "output"}
    found = run_evaluation(config, Asked.typed(**given))
    if found.qualities:
        console.print(tables.qualities(found.qualities, found.text))
    if found.tasks:
        console.print(tables.tasks(found.tasks))
    if folder := eval_folder(config, flags["output"] or ""):
        found.save(folder)
        console.print(f"Numbers and tables lie in {folder}/eval.json and eval.md.", highlight=False, soft_wrap=True)


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
        console.print(tables.recipe_results(results))
        next_command(f"darwinlm eval {results[-1]['model']} --against MODEL --data OTHER_TEXT")


def plan(config: RunConfig, flags: dict[str, Any]) -> None:
    """Sizes, from the configuration alone."""
    from darwinlm import tables

    if flags["recipe"]:
        from darwinlm.recipes.prediction import predict_recipe
        from darwinlm.recipes.recipe import read_recipe

        for table in tables.recipe_plan(predict_recipe(read_recipe(flags["recipe"], flags["typed"]).resolved())):
            console.print(table, highlight=False)
        return
    from darwinlm.planning import make_plan
    from darwinlm.recipes.prediction import predict_pruning

    for table in tables.plan(make_plan(config)):
        console.print(table)
    console.print(tables.hours(predict_pruning(config)), highlight=False)


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
    for table in tables.bench(result):
        console.print(table, highlight=False)
    if predicting:
        console.print(tables.predictions(predictions(result, predicting)), highlight=False)
    numbers, picture = save_bench(result, folder)
    console.print(f"The numbers lie in {numbers}, their picture in {picture}.", highlight=False, soft_wrap=True)


def latency_table(config: RunConfig, folder: Path) -> None:
    """Measure what modules of each width take."""
    from darwinlm import tables
    from darwinlm.measure.table import measure_table, save_table

    table = measure_table(config)
    path = save_table(table, folder)
    for line in tables.latency(table):
        console.print(line, highlight=False)
    next_command(f"darwinlm prune {config.model} --target.speedup 2x --target.latency_table {path}")


def compare(config: RunConfig, flags: dict[str, Any]) -> None:
    """Every method at the same sizes."""
    from darwinlm import tables
    from darwinlm.comparison import asked, run_compare

    given = {name: value for name, value in flags.items() if value is not None}
    comparison, folder = run_compare(config, asked(config, **given))
    for table in tables.comparison(comparison):
        console.print(table, highlight=False)
    console.print(f"Tables, numbers and pictures lie in {folder}.", highlight=False, soft_wrap=True)


def report(config: RunConfig, flags: dict[str, Any]) -> None:
    """One HTML file."""
    from pathlib import Path

    from darwinlm.errors import RequestError
    from darwinlm.measure.report import write_report

    if not flags["run"]:
        raise RequestError("No run is given: darwinlm report RUN, with the folder that a command wrote by --output.")
    written = write_report(Path(flags["run"]).expanduser())
    console.print(f"The report lies in {written}.", highlight=False, soft_wrap=True)


def demo(config: RunConfig, flags: dict[str, Any]) -> None:
    """Prune the embedded model."""
    from darwinlm import tables
    from darwinlm.demonstration import run_demo

    for table in tables.demo(run_demo(config)):
        console.print(table)
    next_command(
        f"darwinlm prune MODEL --data DATA --preset quick --output runs/mine   (this run lies in {config.output})"
    )


def next_command(command: str) -> None:
    """What to type next."""
    console.print(f"Next: {command}", highlight=False, soft_wrap=True)
