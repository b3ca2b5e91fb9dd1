"""The stages in their order: blocks -> database -> search -> export -> evaluation. Each continues where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from darwinlm.assemble import Assembler
from darwinlm.baselines.uniform import uniform
from darwinlm.config import RunConfig, faults, to_dict
from darwinlm.cost import database_bytes, nominal_widths
from darwinlm.data.blocks import SPLITS, Splits, make_splits
from darwinlm.database.build import build_database
from darwinlm.database.levels import Ladder, ladders
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome, Space, is_valid
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.runtime import ranks
from darwinlm.runtime.device import choose_device, choose_dtype, peak_memory_bytes
from darwinlm.runtime.files import read_json, read_tensors, require_room, sha256_of, write_json, write_tensors
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import RunDirectory, require_same
from darwinlm.search.evolution import SearchRecord, evolve
from darwinlm.search.fitness import Teacher
from darwinlm.search.selection import TrainedFitness

_OTHER_OUTPUT = "Choose another --output, or ask for what is there."
_RESTART = "Choose another --output, or add --restart to discard that search and begin anew."


class Run:
    """An opened run: everything that was asked has been checked, nothing long has been done.

    Raises:
        RequestError: the request cannot be fulfilled; raised before any long work.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self.config, self.directory = config, directory
        self.source = ModelSource(config.model, trust_remote_code=config.trust_remote_code)
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.ladders: list[Ladder] = ladders(self.source.shape, config.database)
        self.space = Space(tuple(self.ladders))
        self.share = config.target.level / config.database.levels
        self.stream = BlockStream(self.source, self.device, self.dtype)
        self._check_identity()
        self._check_room()

    def _check_identity(self) -> None:
        """Compare with what the folder holds already, from the outside in."""
        where = self.directory.path
        if self.directory.blocks.exists():
            _, metadata = read_tensors(self.directory.blocks)
            require_same(json.loads(metadata["identity"]), self.blocks_identity, where, "a run", _OTHER_OUTPUT)
        if (self.directory.database / "manifest.json").exists():
            stored = Database.open(self.directory.database).identity
            require_same(stored, self.database_identity, where, "a database", _OTHER_OUTPUT)

    def _check_room(self) -> None:
        """Room for what is still to be written."""
        value_bytes = self.source.dtype.itemsize
        needed = 0
        if not self.directory.blocks.exists():
            needed += 8 * self.config.blocks.sequence_length * sum(getattr(self.config.blocks, name) for name in SPLITS)
        built = sum(file.stat().st_size for file in self.directory.database.glob("*.safetensors"))
        needed += max(0, database_bytes(self.source.shape, self.ladders, value_bytes) - built)
        if not self.directory.model.exists():
            target = self.source.shape.with_layers(nominal_widths(self.source.shape, self.ladders, self.uniform_genome))
            needed += int(1.1 * target.parameters * value_bytes)
        require_room(self.directory.path, needed, "This run")

    @property
    def blocks_identity(self) -> dict[str, Any]:
        """What the token blocks depend on; the model's weights count, so a folder belongs to one model."""
        return {
            "model": f"{self.config.model} {self.source.fingerprint[:16]}",
            "data": self.config.data,
            "seed": self.config.seed,
            **{f"blocks.{key}": value for key, value in to_dict(self.config.blocks).items()},
        }

    @property
    def database_identity(self) -> dict[str, Any]:
        """What the database depends on."""
        settings = {f"database.{key}": value for key, value in to_dict(self.config.database).items()}
        return {**self.blocks_identity, "dtype": str(self.dtype), **settings}

    @property
    def search_identity(self) -> dict[str, Any]:
        """What the search depends on. Not on the number of generations: a finished search can go on."""
        settings = {
            f"search.{key}": value for key, value in to_dict(self.config.search).items() if key != "generations"
        }
        target = {f"target.{key}": value for key, value in to_dict(self.config.target).items()}
        return {"database": sha256_of(self.database_identity), **target, **settings}

    @functools.cached_property
    def uniform_genome(self) -> Genome:
        """Every module at the target's share: the start of the search and the baseline."""
        return uniform(self.space, self.share, self.config.seed)

    @functools.cached_property
    def splits(self) -> Splits:
        """The token blocks; made once per run and kept, so that a continued run reads the same."""
        path = self.directory.blocks
        if ranks.is_first() and not path.exists():
            log.info("Reading '%s'.", self.config.data)
            splits = make_splits(self.config.data, self.config.blocks, self.source.tokenizer, self.config.seed)
            tensors = {name: getattr(splits, name).to(torch.int32) for name in SPLITS}
            write_tensors(path, tensors, {"identity": json.dumps(self.blocks_identity)})
        ranks.barrier()
        tensors, _ = read_tensors(path)
        return Splits(**{name: tensors[name].long() for name in SPLITS})

    def database(self, *, rebuild: bool = False) -> Database:
        """The finished database; built as far as it is missing.

        Args:
            rebuild: make damaged modules again instead of refusing them.
        """
        folder = self.directory.database
        exists = (folder / "manifest.json").exists()
        database = Database.open(folder) if exists else Database(folder, self.database_identity)
        if damaged := database.damaged():
            if not rebuild:
                files = ", ".join(f"'{folder / database.modules[name].file}'" for name in damaged)
                raise DamagedFileError(
                    f"Missing or damaged in the database: {files}. Add --rebuild to make these modules again."
                )
            for name in damaged:
                del database.modules[name]
        with self.directory.timed("database"):
            build_database(database, self.ladders, self.stream, self.splits.hessian, self.config.database)
        return database

    def search(self, database: Database, *, restart: bool = False) -> Genome:
        """The genome that the search ends with; saved as `genome.json`.

        Args:
            database: finished.
            restart: discard a search that lies here.
        """
        record = SearchRecord(self.directory.search, self.search_identity, self.space)
        if restart and ranks.is_first():
            self._discard_search()
        ranks.barrier()
        if (stored := record.stored_identity()) is not None:
            require_same(stored, self.search_identity, self.directory.path, "a search", _RESTART)
        assembler = Assembler(self.source, database, keep_dense=True)
        with self.directory.timed("search"):
            done = record.load()
            if done is None or done.generation < self.config.search.generations:
                state = evolve(
                    lambda: self.uniform_genome,
                    self.space,
                    self.config.search,
                    self.config.seed,
                    self._fitness(assembler),
                    record,
                )
            else:
                state = done
        levels = self.space.named(state.parent)
        totals = {**self.space.totals(state.parent), "parameters": assembler.shape(state.parent).parameters}
        if ranks.is_first():
            write_json(self.directory.genome, {"levels": levels, "totals": totals})
        return state.parent

    def _fitness(self, assembler: Assembler) -> TrainedFitness:
        head = self.source.head().to(self.device, self.dtype)
        teacher = Teacher(self.splits.select, self.stream.final_hidden(self.splits.select), head)
        return TrainedFitness(assembler, self.splits.train, teacher, self.config.search, self.config.seed, self.dtype)

    def _discard_search(self) -> None:
        for path in (self.directory.search, self.directory.model):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.directory.genome, self.directory.summary):
            path.unlink(missing_ok=True)

    def genome(self) -> Genome:
        """The genome that lies here.

        Raises:
            RequestError: there is none, or it does not fit the model.
        """
        if not self.directory.genome.exists():
            raise RequestError(
                f"'{self.directory.path}' holds no genome yet. Run `darwinlm search --output {self.directory.path}` first."
            )
        try:
            genome = self.space.genome(read_json(self.directory.genome)["levels"])
        except KeyError as fault:
            raise DamagedFileError(f"'{self.directory.genome}' lacks {fault}. Run `darwinlm search` again.") from fault
        if not is_valid(self.space, genome):
            raise DamagedFileError(
                f"'{self.directory.genome}' has levels that the database has not. Run `darwinlm search` again."
            )
        return genome

    def export(self, database: Database, genome: Genome) -> None:
        """Write the genome's checkpoint to `model/`, unless it lies there already."""
        marker = self.directory.model / "darwinlm.json"
        made_from = {"genome": self.space.named(genome), "database": sha256_of(database.identity)}
        if marker.exists() and read_json(marker) == made_from:
            return
        with self.directory.timed("export"):
            assembler = Assembler(self.source, database, keep_dense=False)
            export_checkpoint(assembler, genome, self.directory.model, self._card_facts(), made_from)

    def _card_facts(self) -> dict[str, Any]:
        config = self.config
        tokens = config.blocks.hessian * config.blocks.sequence_length
        return {
            "target": f"level {config.target.level:g} of {config.database.levels}",
            "Hessians": f"{tokens:,} tokens of `{config.data}`, relative damping {config.database.rel_damp:g}",
            "attention unit": config.database.attention_unit,
            "search": f"{config.search.generations} generations of {config.search.offspring} offspring",
            "survivors": config.search.survivors,
            "trial training": f"{config.search.train_tokens} tokens, AdamW, learning rate {config.search.learning_rate:g}",
            "selection": f"{config.search.select_tokens} tokens, KL to the dense model",
            "seed": config.seed,
        }

    def evaluate(self, database: Database, genome: Genome) -> dict[str, Any]:
        """Score dense, uniform and pruned on the held-out blocks; saved as `summary.json`."""
        with self.directory.timed("evaluation"):
            held_out = HeldOut(self.splits.held_out, self.stream)
            assembler = Assembler(self.source, database, keep_dense=False)
            exported = BlockStream(ModelSource(str(self.directory.model)), self.device, self.dtype)
            qualities: dict[str, Quality] = {
                "dense": held_out.dense_quality(),
                "uniform": held_out.quality_of_model(assembler.model(self.uniform_genome, self.device, self.dtype)),
                "pruned": held_out.quality(exported),
            }
        summary = {
            **{name: dataclasses.asdict(quality) for name, quality in qualities.items()},
            "target": to_dict(self.config.target),
            "achieved": self._achieved(genome, qualities),
            "seconds": self.directory.seconds(),
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "settings": to_dict(self.config),
        }
        write_json(self.directory.summary, summary)
        return summary

    def _achieved(self, genome: Genome, qualities: dict[str, Quality]) -> dict[str, Any]:
        shares = {
            kind: total / sum(self.ladders[i].top for i in self.space.members(kind))
            for kind, total in self.space.totals(genome).items()
        }
        levels = {f"{kind}_level": round(share * self.config.database.levels, 4) for kind, share in shares.items()}
        return {**levels, "parameter_ratio": qualities["pruned"].parameters / qualities["dense"].parameters}


@contextmanager
def opened(config: RunConfig) -> Iterator[Run]:
    """Check a request and open its run directory, alone.

    Raises:
        RequestError: the request cannot be fulfilled.
    """
    missing = [
        f"No {name} is given: {hint}."
        for name, hint in (
            ("model", "a folder or hub id"),
            ("data", "--data with a file, folder, hub data set or stdlib"),
            ("output", "--output with a run directory"),
        )
        if not getattr(config, name)
    ]
    if found := missing + faults(config):
        raise RequestError(*found)
    directory = RunDirectory(config.path)
    ModelSource(config.model, weights=False, trust_remote_code=config.trust_remote_code)  # before a folder is made
    ranks.join()
    with directory.locked() if ranks.is_first() else nullcontext():
        run = Run(config, directory)
        run.splits  # noqa: B018  a tokenizer that does not fit and too few tokens are found now
        if ranks.is_first():
            directory.save_settings(to_dict(config))
        yield run
        ranks.barrier()


def run_database(config: RunConfig, *, rebuild: bool = False) -> Database:
    """Build the level database of a run."""
    with opened(config) as run:
        return run.database(rebuild=rebuild)


def run_search(config: RunConfig, *, restart: bool = False) -> dict[str, int]:
    """Search on a finished database; returns {module name: level}."""
    with opened(config) as run:
        return run.space.named(run.search(_finished(run), restart=restart))


def run_export(config: RunConfig) -> Path:
    """Write the checkpoint of a finished search; returns its folder. One rank does it all."""
    with opened(config) as run:
        if ranks.is_first():
            run.export(_finished(run), run.genome())
        return run.directory.model


def run_prune(config: RunConfig, *, rebuild: bool = False, restart: bool = False) -> dict[str, Any]:
    """All stages; returns what `summary.json` holds. Ranks other than the first leave after the search, with nothing."""
    with opened(config) as run:
        database = run.database(rebuild=rebuild)
        genome = run.search(database, restart=restart)
        if not ranks.is_first():
            return {}
        run.export(database, genome)
        return run.evaluate(database, genome)


def _finished(run: Run) -> Database:
    folder = run.directory.database
    hint = f"Run `darwinlm database --output {run.directory.path}` first."
    if not (folder / "manifest.json").exists():
        raise RequestError(f"'{run.directory.path}' holds no database yet. {hint}")
    database = Database.open(folder)
    if missing := [ladder.name for ladder in run.ladders if ladder.name not in database.modules]:
        raise RequestError(f"The database in '{folder}' lacks {len(missing)} modules, {missing[0]} first. {hint}")
    if damaged := database.damaged():
        files = ", ".join(f"'{folder / database.modules[name].file}'" for name in damaged)
        raise DamagedFileError(f"Missing or damaged in the database: {files}. Run `darwinlm database` with --rebuild.")
    return database
