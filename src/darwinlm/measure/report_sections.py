"""The sections of a report, each from a file of a run directory; those whose files are not there yet are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from darwinlm.config import TargetConfig, described
from darwinlm.config.reading import adapter
from darwinlm.database.store import MANIFEST, Database
from darwinlm.errors import DamagedFileError
from darwinlm.measure import method_pictures, pictures
from darwinlm.measure.tables import (
    Table,
    bench_note,
    bench_tables,
    doubts,
    gigabytes,
    pruned_table,
    quality_table,
    task_tables,
    trained_table,
)
from darwinlm.measure.task_scores import TaskComparison
from darwinlm.models.family import place_of
from darwinlm.models.sites import KINDS, Kind, layer_of
from darwinlm.recovery.history import curves
from darwinlm.refit.store import RECORD
from darwinlm.runtime.files import read_json, read_lines
from darwinlm.runtime.pictures import Panel, as_svg
from darwinlm.runtime.progress import duration
from darwinlm.runtime.rundir import RunDirectory
from darwinlm.target.target import format_limit

_OF_TRAINING = ("method", "tokens", "batch_tokens", "sequence_length", "learning_rate", "teacher", "distill_weight")
_REFIT = """Block by block, every output matrix is fitted to the inputs that it really gets. KL to the dense model on
tokens that nothing was fitted to, by the first layers that have it: {kls}. The first {depth} have it. Bars: how much of what the
residual stream lacks behind a module, mean square, its own refit took: attention, MLP."""


@dataclass(frozen=True)
class Section:
    """One card of the page."""

    name: str
    title: str
    text: str = ""
    pictures: list[Markup] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    code: str = ""
    folded: str = ""
    """What to click on to see the code; empty shows it."""


@dataclass(frozen=True)
class Contents:
    """A folder that a command wrote."""

    directory: RunDirectory
    settings: dict[str, Any]
    """Its `config.yaml`."""
    summary: dict[str, Any]
    """Its `summary.json`; empty where there is none yet."""

    @property
    def is_training(self) -> bool:
        """Whether it is that of `darwinlm train`."""
        return (self.directory.path / "train").is_dir()


def result_sections(found: Contents) -> list[Section]:
    """What was asked, and what each file that is there holds."""
    with told_of(found.directory.config):
        _asked(Contents(found.directory, found.settings, {}))  # what is wrong here is not the summary's fault
    with told_of(found.directory.summary):
        sections = [_asked(found)]
    for name, make in SECTIONS.items():
        file = found.directory.database / MANIFEST if name == MANIFEST else found.directory.path / name
        if file.exists():
            with told_of(file):
                sections += make(found, file)
    return sections


@contextmanager
def told_of(file: Path) -> Iterator[None]:
    """Name the file that the work within reads, where it holds something else than it should.

    Raises:
        DamagedFileError: it does.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as fault:
        raise DamagedFileError(
            f"'{file}' is not what this version of DarwinLM writes ({type(fault).__name__}: {fault}). Make it again, or "
            "move it out of the run directory."
        ) from fault


def _asked(found: Contents) -> Section:
    settings, summary = found.settings, found.summary
    rows = [[name, str(settings.get(name) or "-")] for name in ("model", "data")]
    if found.is_training:
        train = settings["train"]
        rows += [[name.replace("_", " "), f"{train[name]}"] for name in _OF_TRAINING if train.get(name)]
        return Section("asked", "Asked", tables=[Table(rows)])
    levels = settings["database"]["levels"]
    rows.append(["target", described(TargetConfig(**settings["target"]), levels)])
    got = summary.get("achieved", {})
    for name, limit in got.get("limits", {}).items():
        asked, reached, least = (format_limit(name, limit[key]) for key in ("asked", "got", "smallest"))
        rows.append([name, f"{reached}; asked: at most {asked}; the least possible: {least}"])
    if got:
        kinds = ", ".join(f"{kind} {got[f'{kind}_level']:.2f}" for kind in KINDS if f"{kind}_level" in got)
        rows.append(["mean level", f"{kinds.replace('mlp', 'MLP')} of {levels}"])
    rows += [["shape", ", ".join(f"{key} {value}" for key, value in got["shape"].items())]] if "shape" in got else []
    if size := summary.get("peak_memory_bytes"):
        rows.append(["peak memory", gigabytes(size)])
    return Section("asked", "Asked and got", tables=[Table(rows)])


def _quality(found: Contents, _: Path) -> Iterable[Section]:
    text = "On held-out text. The uniform model takes the same share from every module."
    if found.is_training:
        text, table = "On held-out text.", trained_table(found.summary)
    else:
        table, text = pruned_table(found.summary), " ".join([text, *doubts(found.summary)])
    yield Section("quality", "Quality", text, tables=[table])


def _genome(found: Contents, file: Path) -> Iterable[Section]:
    values = read_json(file)
    levels: dict[str, int] = values["levels"]
    formats: dict[str, str] = values.get("formats", {})
    steps: int = found.settings["database"]["levels"]
    manifest = found.directory.database / MANIFEST
    ladders: dict[str, int] = {}
    if manifest.exists():
        with told_of(manifest):
            ladders = {ladder.name: ladder.top for ladder in Database.open(manifest.parent).ladders()}
    tops = {name: ladders[name] if name in ladders else max(steps, level) for name, level in levels.items()}
    target = found.settings["target"].get("level")
    share = 1 - target / steps if target else 1 - sum(levels.values()) / sum(tops.values())
    layers: dict[int, dict[Kind, str]] = {}
    for name, level in levels.items():
        layer, kind = place_of(name)
        layers.setdefault(layer, {})[kind] = f"{level} of {tops[name]}{', ' * (name in formats)}{formats.get(name, '')}"
    drawn = _drawn("genome", pictures.genome(levels, tops, share), pictures.by_layer(len(layers)))
    rows = [[str(layer), *(here.get(kind, "-") for kind in KINDS)] for layer, here in layers.items()]
    table = Table(rows, ["layer", "attention level", "MLP level"], folded="Levels of all modules")
    text = "What is left of each module; a cross is a module that is gone, the dashed line the mean of all."
    yield Section("genome", "The genome", text, drawn, [table])


def _start(found: Contents, file: Path) -> Iterable[Section]:
    values = read_json(file)
    if len(scores := values.get("scores", [])) > 1:
        first, best = scores[0][1], min(kl for _, kl in scores)
        text = f"{len(scores)} allocations, proposed from the costs that a backward pass tells: KL {first:.4f} -> {best:.4f}."
        yield Section("start", "The search", text, _drawn("start", [pictures.start(values)]))


def _evolution(found: Contents, file: Path) -> Iterable[Section]:
    start = found.directory.search / "start.json"
    lines, first = read_lines(file), read_json(start) if start.exists() else {}
    if not lines:
        return
    wins = [line for line in lines if line["improved"]]
    text = f"{len(lines)} generations, {len(wins)} with a new parent. KL in each generation is measured anew, so it moves a little."
    rows = []
    for line in wins:
        changes = "  ".join(f"{name.removeprefix('model.')} {step:+d}" for name, step in line["changes"].items())
        rows.append([str(line["generation"] + 1), f"{line['kl']:.4f}", changes])
    folded = f"What the {len(rows)} winners changed: plus is a level up"
    tables = [Table(rows, ["generation", "KL", "changes"], folded=folded)] if rows else []
    yield Section("search", "The evolution", text, _drawn("search", [pictures.evolution(lines, first)]), tables)


def _refit(found: Contents, file: Path) -> Iterable[Section]:
    values = read_json(file)
    matrices = values["matrices"]
    if not values["kl"] or not matrices or isinstance(values["kl"], list):  # not judged; an older run
        return
    listed = ", ".join(f"{depth}: {kl:.4f}" for depth, kl in values["kl"].items())
    text = _REFIT.format(kls=listed, depth=values["depth"]).replace("\n", " ")
    layers = len({layer_of(name) for name in matrices})
    yield Section(
        "refit", "The refit", text, _drawn("refit", [pictures.refit(matrices)], pictures.by_layer(layers, 3.0))
    )


def _errors(found: Contents, file: Path) -> Iterable[Section]:
    database = Database.open(file.parent)
    if database.modules:
        text = f"Relative error of each module's output at each level, on the calibration text; {len(database.modules)} modules."
        taken = {name: record.rare for name, record in database.modules.items() if record.rare}
        rare = [[name, ", ".join(f"expert {e} ({n})" for e, n in each.items())] for name, each in taken.items()]
        if rare:
            text += (
                " Fewer tokens than they have columns took the experts below (so many): their levels rest on damping. More "
                "blocks.hessian helps."
            )
        yield Section(
            "database",
            "The database",
            text,
            _drawn("errors", pictures.errors(database)),
            [Table(rare, folded="Experts (tokens)")] if rare else [],
        )


def _training(found: Contents, file: Path) -> Iterable[Section]:
    """The course of a training: the folder's own, or one of the folder's checkpoint."""
    lines, folder = read_lines(file), file.parent.parent
    steps = [line["step"] for line in lines if "loss" in line]
    if not steps:
        return
    own, summary = folder == found.directory.path, folder / "summary.json"
    tables, text = [], f"{max(steps):,} steps."
    if not own and summary.exists():
        with told_of(summary):
            tables = [trained_table(read_json(summary))]
    text += "" if own else f" In {folder.name}/, with a report of its own: darwinlm report."
    yield Section(
        "training", "The training" if own else "Post-training", text, _drawn("training", curves(lines)), tables
    )


def _family(found: Contents, file: Path) -> Iterable[Section]:
    values = read_json(file)
    dense, members = values["dense"], values["members"]
    rows = {"dense": dense}
    for member in members:
        rows |= {member["target"]: member["pruned"], f"{member['target']}, uniform": member["uniform"]}
    table = quality_table(rows, ours=tuple(member["target"] for member in members))
    text = "Each smaller model keeps a part of what the next larger one keeps; a folder in family/ for each."
    yield Section("family", "A family of models", text, _drawn("family", pictures.family(dense, members)), [table])


def _evaluated(found: Contents, file: Path) -> Iterable[Section]:
    values = read_json(file)
    tables = [quality_table(values["qualities"], values["text"])] if values["qualities"] else []
    tables += task_tables(adapter(TaskComparison).validate_python(values["tasks"])) if values["tasks"] else []
    yield Section("eval", "Evaluation", "By darwinlm eval.", tables=tables)


def _benched(found: Contents, file: Path) -> Iterable[Section]:
    result = read_json(file)
    drawn = _drawn("bench", pictures.bench(result), pictures.bench_size(result))
    yield Section("bench", "Speed and memory", f"By darwinlm bench. {bench_note(result)}", drawn, bench_tables(result))


def _compared(found: Contents, file: Path) -> Iterable[Section]:
    values = read_json(file)
    drawn = _drawn("tradeoff", method_pictures.tradeoff(values), method_pictures.TRADEOFF_SIZE)
    for place, level in enumerate(map(float, values["budgets"])):
        drawn += _drawn(f"left{place}_", *method_pictures.allocations(values, level))
    tables = [Table(**table) for table in values.get("tables", [])]
    yield Section("compare", "Methods side by side", "By darwinlm compare.", drawn, tables)


def _time(found: Contents, file: Path) -> Iterable[Section]:
    if seconds := read_json(file):
        table = Table([[stage, duration(taken)] for stage, taken in seconds.items()], ["stage", "time"])
        yield Section("time", "Time", tables=[table])


SECTIONS = {
    "summary.json": _quality,
    "train/history.jsonl": _training,
    "genome.json": _genome,
    "search/start.json": _start,
    "search/history.jsonl": _evolution,
    f"refit/{RECORD}": _refit,
    "trained/train/history.jsonl": _training,
    MANIFEST: _errors,
    "family/family.json": _family,
    "eval.json": _evaluated,
    "bench.json": _benched,
    "compare/compare.json": _compared,
    "timings.json": _time,
}
"""{file: its sections}, in the order of the page."""


def _drawn(name: str, panels: Iterable[Panel], size: tuple[float, float] = (4.6, 3.0)) -> list[Markup]:
    return [Markup(as_svg(f"{name}{place}", panel, size)) for place, panel in enumerate(panels)]
