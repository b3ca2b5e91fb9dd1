"""DarwinLM: training-aware, evolutionary structured pruning of large language models (arXiv 2502.07780).

    import darwinlm

    pruned = darwinlm.prune("Qwen/Qwen3-0.6B", data="fineweb-edu", output="runs/qwen3", target={"parameters": "60%"})
    print(pruned.summary["pruned"]["perplexity"])
    model = darwinlm.load("runs/qwen3/model")

The functions here are the commands: the command line is made from their signatures and docstrings. Settings are given as in
`config.yaml`, groups as dictionaries (`darwinlm schema` lists them). Each function returns a dataclass that rich prints as
tables and whose `to_dict()` is plain data, and raises `RequestError` where the request cannot be fulfilled, before long work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from darwinlm.errors import CalibrationError, DamagedFileError, DarwinLMError, RequestError
from darwinlm.keywords import (
    Comparing,
    Continuing,
    Exporting,
    Planning,
    Pruning,
    Run,
    Speed,
    Steps,
    Text,
    Training,
)
from darwinlm.version import __version__

if TYPE_CHECKING:  # importing the package costs nothing: engines import its plugin
    from typing_extensions import Unpack

    from darwinlm import show
    from darwinlm.config import RunConfig
    from darwinlm.config.training import Tokens

__all__ = [
    "CalibrationError",
    "DamagedFileError",
    "DarwinLMError",
    "RequestError",
    "__version__",
    "bench",
    "build_database",
    "check_database",
    "compare",
    "demo",
    "evaluate",
    "export_checkpoint",
    "import_checkpoint",
    "load",
    "measure_latency",
    "plan",
    "plan_recipe",
    "prune",
    "prune_family",
    "refit_genome",
    "report",
    "run_recipe",
    "search_genome",
    "settings_schema",
    "train",
]
Place = str | os.PathLike[str]
_RUN = ("model", "data", "output")
"""What a run cannot do without."""


def prune(
    model: Place = "", *, rebuild: bool = False, restart: bool = False, **settings: Unpack[Pruning]
) -> show.Pruned:
    """Prune a model: database, search, refit, export, evaluation; a run that was stopped goes on.

    Args:
        model: path or hub id of the dense model
        rebuild: make damaged files of the database again
        restart: discard the search that lies in the output folder and begin anew
    """
    config = _settled(Pruning, settings, *_RUN, model=model)

    from darwinlm import show
    from darwinlm.run.pruning import run_prune

    return show.Pruned(config.model, config.path, run_prune(config, rebuild=rebuild, restart=restart))


def prune_family(
    model: Place = "",
    *,
    targets: str | Sequence[str | float] = "",
    rebuild: bool = False,
    restart: bool = False,
    **settings: Unpack[Pruning],
) -> show.Family:
    """Prune a model to several targets at once, each smaller model nested in the larger, with one database.

    Args:
        model: path or hub id of the dense model
        targets: several targets of one kind with commas, such as 3B,4B,5B, 40%,60%, 1.5x,2x or 4,5,6: nested models
        rebuild: make damaged files of the database again
        restart: discard the search that lies in the output folder and begin anew
    """
    from darwinlm import show
    from darwinlm.config.target import asks
    from darwinlm.errors import RequestError
    from darwinlm.run.family import run_family

    if named := asks(settings):
        raise RequestError(
            f"--targets says what is asked, so leave out {', '.join(f'--target.{name}' for name in named)}."
        )
    config = _settled(Pruning, settings, *_RUN, without=("target",), model=model)  # each target is checked by itself

    members = run_family(config, _commas(targets), rebuild=rebuild, restart=restart)
    return show.Family(config.model, config.path / "family", members)


def build_database(model: Place = "", *, rebuild: bool = False, **settings: Unpack[Pruning]) -> show.Levels:
    """Make second-order levels of every module, from dense to gone.

    Args:
        model: path or hub id of the dense model
        rebuild: make damaged files of the database again
    """
    config = _settled(Pruning, settings, *_RUN, model=model)

    from darwinlm import show
    from darwinlm.run.pruning import run_database

    return show.Levels(run_database(config, rebuild=rebuild), config)


def check_database(output: Place = "", *, show: bool = False, **settings: Unpack[Continuing]) -> show.Levels:
    """Check that all files of a run's database are whole.

    Args:
        output: the run directory
        show: show the errors of a run's database, too: a table, and a picture beside its files
    """
    config = _settled(Continuing, settings, "output", output=output)

    from darwinlm.run.pruning import check_database
    from darwinlm.show import Levels

    database, picture = check_database(config, draw=show)
    return Levels(database, config, True, picture)


def search_genome(output: Place = "", *, restart: bool = False, **settings: Unpack[Continuing]) -> show.Found:
    """Search which level every module takes, on the database of a run.

    Args:
        output: the run directory
        restart: discard the search that lies there and begin anew
    """
    config = _settled(Continuing, settings, "output", output=output)

    from darwinlm import show
    from darwinlm.run.pruning import run_search

    return show.Found(config.path, run_search(config, restart=restart))


def refit_genome(output: Place = "", **settings: Unpack[Continuing]) -> show.Refitted:
    """Refit the output matrices of the found model on its own inputs; `prune` and `export` do it, too.

    Args:
        output: the run directory
    """
    config = _settled(Continuing, settings, "output", output=output)

    from darwinlm import show
    from darwinlm.run.pruning import run_refit

    return show.Refitted(config.path, run_refit(config))


def export_checkpoint(
    model: Place = "",
    *,
    output: Place = "",
    portable: bool = False,
    format: str = "",
    dtype: str = "",
    push: str = "",
    **settings: Unpack[Exporting],
) -> show.Exported:
    """Write a really smaller Hugging Face checkpoint, and other forms of it beside it.

    Args:
        model: run directory whose genome is written, or a finished checkpoint that gets other forms
        output: the run directory
        portable: write a checkpoint with zero stubs for absent modules, too, for engines that need every module
        format: write this format, too: gguf, for llama.cpp, or compressed-tensors, for vLLM
        dtype: of the GGUF file: f32, f16, bf16, q8_0, or a K-quant from q3_k_s to q6_k; by default what the checkpoint is stored
            in. Of compressed-tensors: w4a16 (by default) or w8a16. By --data (or the run's own text) K-quants round those columns
            least that are fed most, and packed numbers make up for each other's errors
        push: put all of it on the Hugging Face hub, as USER/NAME, with a card that has the run's numbers
    """
    if model and not output and (Path(model).expanduser() / "database").is_dir():
        model, output = "", model
    config = _settled(Exporting, settings, model=model, output=output)

    from darwinlm import show
    from darwinlm.export import push as hub
    from darwinlm.export.forms import Wanted
    from darwinlm.run.pruning import run_export

    if push:
        hub.check_push(push)
    forms = run_export(config, Wanted(portable, format, dtype), again=bool(push))
    url = hub.push(forms, push) if push and forms else ""
    return show.Exported(config.model if config.output else "", forms, url)


def import_checkpoint(
    source: Place = "", output: Place = "", *, model: Place = "", configuration: Place = "", dtype: str = ""
) -> show.Imported:
    """Make a checkpoint of a GGUF file, or a really smaller one of a masked model or the authors' level database.

    Args:
        source: FILE.gguf, masked checkpoint, or folder of <module>/<level>.pth files
        output: folder of the checkpoint
        model: the dense model of a level database
        configuration: text file with a line `module: level` for each module of a level database
        dtype: of a GGUF file's checkpoint: f32, f16 or bf16; by default what loses nothing, f32 of a quantized file
    """
    from darwinlm import show
    from darwinlm.foreign.masked import import_model

    places = {"model": os.fspath(model), "configuration": os.fspath(configuration)}
    return show.Imported(import_model(os.fspath(source), os.fspath(output), dtype=dtype, **places))


def train(
    model: Place = "",
    *,
    tokens: Tokens | None = None,
    teacher: Place = "",
    lora: bool = False,
    **settings: Unpack[Training],
) -> show.Trained:
    """Train a checkpoint further: cross entropy, distillation, adapters.

    The result lies in `output`/model: by default in `trained` of the run whose checkpoint it is, else beside it.

    Args:
        model: the checkpoint, pruned or dense: folder or hub id
        tokens: tokens to train on, such as 50M or 10B; short for train.tokens
        teacher: the dense model to learn from: folder or hub id; short for train.teacher
        lora: train low-rank adapters and merge them; short for train.method lora
    """
    from darwinlm import show
    from darwinlm.recovery.run import run_train

    short = {"tokens": tokens, "teacher": os.fspath(teacher), "method": "lora" if lora else ""}
    given = {**settings.get("train", {}), **{name: value for name, value in short.items() if value}}
    config = _settled(Training, {**settings, "train": given}, model=model)
    return show.Trained(config.train.teacher, run_train(config))


def evaluate(
    model: Place = "",
    *,
    against: Place = "",
    beside: str | Sequence[Place] = "",
    tasks: str = "",
    include_path: Place = "",
    limit: int | None = None,
    batch_size: int | None = None,
    apply_chat_template: bool = False,
    output: Place = "",
    **settings: Unpack[Text],
) -> show.Evaluated:
    """Score a checkpoint: perplexity on held-out text, KL to the dense model, and both at tasks of lm-evaluation-harness.

    Args:
        model: the checkpoint: folder or hub id
        against: the dense model to compare with: folder or hub id
        beside: further models with commas, given the same text and tasks
        tasks: paper, or names with commas such as hellaswag@10,piqa (10 examples, usual)
        include_path: folder with task files of your own
        limit: questions of each task, the first ones; all by default
        batch_size: sequences in a forward pass at the tasks; 8 by default
        apply_chat_template: put the requests of tasks into the models' chat template, solved examples as turns
        output: folder that keeps every result, so that none is made twice; by default the checkpoint's run directory
    """
    config = _settled(Text, settings, "model", model=model)

    from darwinlm import show
    from darwinlm.measure.evaluation import Asked, run_evaluation
    from darwinlm.runtime.rundir import results_folder

    others = tuple(filter(None, map(str.strip, _commas(beside).split(","))))
    numbers = (limit, batch_size, apply_chat_template)
    asked = Asked(os.fspath(against), others, tasks, os.fspath(include_path), *numbers)
    folder = results_folder(config.model, os.fspath(output))
    found = run_evaluation(config, asked, folder)
    if folder:
        found.save(folder)
    return show.Evaluated(**vars(found), folder=folder)


def bench(
    model: Place = "",
    *,
    against: Place = "",
    latency_table: Place = "",
    output: Place = "",
    **settings: Unpack[Speed],
) -> show.Benchmarked:
    """Measure speed and memory of a checkpoint or .gguf file, beside the dense one's, in turn.

    Args:
        model: the checkpoint, folder or hub id, or a .gguf file
        against: the dense model to compare with: folder, hub id or .gguf file
        latency_table: a file of `bench --table`: its predictions are printed beside what is measured
        output: folder for the numbers and their picture; by default the checkpoint's run directory, else runs/bench
    """
    config = _settled(Speed, settings, "model", model=model)

    from darwinlm import show
    from darwinlm.measure.bench import run_bench, save_bench
    from darwinlm.measure.predicted import predictions, require_same_engine
    from darwinlm.runtime.rundir import results_folder
    from darwinlm.target.latency import LatencyTable

    table = LatencyTable.load(Path(latency_table).expanduser()) if latency_table else None
    if table:
        require_same_engine(table, config.model, config)
    folder = results_folder(config.model, os.fspath(output)) or Path("runs/bench")
    result = run_bench([os.fspath(against), config.model] if against else [config.model], config)
    files = save_bench(result, folder)
    return show.Benchmarked(result, files, predictions(result, table) if table else [])


def measure_latency(model: Place = "", *, output: Place = "runs/bench", **settings: Unpack[Speed]) -> show.Latency:
    """Measure what every width of a module takes on this machine, for `target.speedup`.

    Args:
        model: the dense model: folder or hub id
        output: folder that gets latency.json
    """
    config = _settled(Speed, settings, "model", model=model)

    from darwinlm import show
    from darwinlm.measure.table import measure_table
    from darwinlm.runtime.rundir import results_folder

    folder = results_folder("", os.fspath(output)) or Path()
    table = measure_table(config)
    table.save(path := folder / "latency.json")
    return show.Latency(config.model, table, path)


def compare(
    model: Place = "",
    *,
    methods: str | Sequence[str] = "all",
    levels: str | float | Sequence[str | float] = "",
    formats: str | Sequence[str] = "",
    embedding_format: str = "",
    train_tokens: int = 0,
    learning_rate: float = 3e-5,
    seeds: int = 1,
    keep_models: bool = False,
    **settings: Unpack[Comparing],
) -> show.Compared:
    """Compare every method of the paper's comparisons on your model, at the same sizes.

    Args:
        model: path or hub id of the dense model
        methods: methods with commas, or all: uniform, magnitude, llm_pruner, flap, flap_no_bias, minitron, minitron_depth,
            random, ziplm, ziplm_kinds, shortgpt, shortened_llama, shortened_llama_taylor, sliding_cosine, evopress, sheared,
            sheared_levels, darwinlm_untrained, darwinlm, darwinlm_parameters, darwinlm_stock, and with --formats
            one_format, then_quantized, formats_alone, darwinlm_formats
        levels: with commas, levels in steps of database.levels, or sizes such as 60% or 80M; by default half of database.levels
            (preset paper: its level). With --formats sizes of the file, such as 60MB or 50% of the dense one, by default 50%
        formats: with commas, such as q8_0,q4_0 or w8a16,w4a16: methods that give every module one, within the bytes of a file
        embedding_format: of embedding and head in GGUF, such as q8_0; by default the checkpoint's own
        train_tokens: tokens of the same post-training for every model, which is then scored again; 0 for none
        learning_rate: AdamW's in that post-training, without warm-up
        seeds: runs with different seeds of every method that searches, whose mean is reported
        keep_models: write every method's model, as pruned, as a checkpoint, too: RUN/compare/METHOD/levelL_seedS/model
    """
    config = _settled(Comparing, settings, *_RUN, model=model)

    from darwinlm import show
    from darwinlm.comparison.comparing import asked, in_formats, run_compare

    stored = in_formats(_commas(formats), embedding_format)
    wanted = asked(config, _commas(methods), _commas(levels), train_tokens, learning_rate, seeds, keep_models, stored)
    return show.Compared(*run_compare(config, wanted))


def report(run: Place = "") -> show.Reported:
    """Write one HTML file with tables and pictures of a run, finished or not.

    Args:
        run: what a command wrote by --output
    """
    if not run:
        raise RequestError("No run is given: darwinlm report RUN, with the folder that a command wrote by --output.")

    from darwinlm import show
    from darwinlm.measure.report import write_report

    return show.Reported(write_report(Path(run).expanduser()))


def run_recipe(file: Place = "", **settings: Unpack[Steps]) -> show.RecipeRun:
    """Run an experiment of several steps, such as prune, train, prune further, train; finished ones are not run again.

    Args:
        file: the recipe, such as recipes/llama2_7b_to_2.7b.yaml; settings go above those of every step
    """
    if not file:
        raise RequestError("No recipe is given: a file such as recipes/llama2_7b_to_2.7b.yaml.")

    from darwinlm import show
    from darwinlm.run.recipe import read_recipe
    from darwinlm.run.recipe_steps import run_recipe

    return show.RecipeRun(run_recipe(read_recipe(os.fspath(file), _above(settings))))


def plan(model: Place = "", **settings: Unpack[Planning]) -> show.Planned:
    """Predict sizes, disk, memory, tokens and hours of a run, from the model's configuration alone.

    Examples:
        >>> from pathlib import Path
        >>> model = Path(darwinlm.__file__).with_name("demo_model")
        >>> planned = darwinlm.plan(model, target={"parameters": "60%"}, blocks={"sequence_length": 256})
        >>> planned.plan.dense.parameters
        4918528
        >>> planned.plan.target.parameters <= 0.6 * 4918528
        True

    Args:
        model: path or hub id of the dense model
    """
    import torch

    config = _settled(Planning, settings, "model", model=model)

    from darwinlm import show
    from darwinlm.run.plan import make_plan
    from darwinlm.run.prediction import predict_pruning
    from darwinlm.runtime.device import choose_device, device_name, measured_rate

    made, device, here = make_plan(config), choose_device("auto"), None
    if device.type == "cpu" and config.plan.device is None and config.device in ("auto", "cpu"):
        threads = torch.get_num_threads()
        here = f"{device_name(device)}, {threads} thread{'s' * (threads > 1)}", measured_rate(device)
    return show.Planned(made, predict_pruning(config), here)


def plan_recipe(recipe: Place, model: Place = "", **settings: Unpack[Planning]) -> show.RecipePlanned:
    """Predict what the steps of a recipe will take, from the configuration of its model alone.

    Args:
        recipe: predict the steps of this recipe instead
        model: takes the place of the recipe's
    """
    from darwinlm import show
    from darwinlm.run.prediction import predict_recipe
    from darwinlm.run.recipe import read_recipe

    steps = read_recipe(os.fspath(recipe), _above({**settings, "model": model})).resolved()
    return show.RecipePlanned(predict_recipe(steps))


def demo(output: Place = "runs/demo", **settings: Unpack[Run]) -> show.Demonstrated:
    """Prune the embedded model, minutes on a laptop CPU, and compare it with the dense and the uniformly pruned one.

    Args:
        output: the run directory
    """
    config = _settled(Run, settings, default="demo", output=output)

    from darwinlm import show
    from darwinlm.run.demonstration import run_demo

    return show.Demonstrated(config.path, run_demo(config))


def settings_schema() -> show.Schema:
    """Give the JSON schema of the settings, for editors that check and complete YAML.

    Examples:
        >>> darwinlm.settings_schema().schema["properties"]["seed"]["description"]
        'Seed of every random choice.'
    """
    from darwinlm import show
    from darwinlm.config.described import json_schema

    return show.Schema(json_schema())


def load(model: Place, *, device: str = "auto", dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> Any:
    """The language model of a checkpoint, pruned or not, in evaluation mode; no code that ships with it is run.

    Its logits are (sequences, tokens, vocabulary), as of any `PreTrainedModel`.

    Examples:
        >>> from pathlib import Path
        >>> import torch
        >>> model = darwinlm.load(Path(darwinlm.__file__).with_name("demo_model"))
        >>> model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape[:2]
        torch.Size([1, 3])

    Args:
        model: the checkpoint: folder or hub id
        device: `auto`, `cpu`, `cuda` or another torch device
        dtype: what it computes in; `auto` is bfloat16 on a GPU and float32 on a CPU

    Raises:
        RequestError: there is no such checkpoint, or its family is not known.
    """
    from darwinlm.models.source import ModelSource
    from darwinlm.models.whole import load_whole
    from darwinlm.runtime.device import choose_device, choose_dtype

    there = choose_device(device)
    return load_whole(ModelSource(os.fspath(model), packed=True), there, choose_dtype(dtype, there))


def _settled(
    taken: type,
    settings: Mapping[str, Any],
    *needs: str,
    without: tuple[str, ...] = (),
    default: str | None = None,
    **places: Place,
) -> RunConfig:
    """The settings of a run, with what the command needs; groups that it does not take are not checked."""
    from darwinlm.config import RunConfig, settled

    given = {key: value for key, value in _paths({**settings, **places}).items() if value != ""}
    preset, file = given.pop("preset", None), given.pop("config", None)
    idle = tuple(field for field in RunConfig.__dataclass_fields__ if field not in taken.__annotations__)
    return settled(given, preset=preset, file=file, default=default, without=(*idle, *without), needs=needs)


def _above(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What goes above the settings of every step of a recipe."""
    from darwinlm.config import merge, preset_values, read_yaml

    given = {key: value for key, value in _paths(settings).items() if value != ""}
    preset, file = given.pop("preset", None), given.pop("config", None)
    return merge(preset_values(preset) if preset else {}, read_yaml(Path(file)) if file else {}, given)


def _paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With paths as text."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in settings.items()}


def _commas(values: Any) -> str:
    """A list as it is typed."""
    listed = values if isinstance(values, list | tuple) else [values]
    return ",".join(os.fspath(value) if isinstance(value, os.PathLike) else str(value) for value in listed)
