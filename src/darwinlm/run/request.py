"""A run, opened: everything that was asked is checked against the model and the folder before any long work."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import NEEDED, ROUNDED, RunConfig, missing, to_dict, violations
from darwinlm.cost import (
    Work,
    database_bytes,
    database_need,
    nominal_module,
    nominal_widths,
    refit_need,
    rounded_bytes,
    rounding_need,
    search_need,
)
from darwinlm.data.blocks import SPLITS, Splits, make_splits
from darwinlm.data.lineage import FOLDER, Lineage
from darwinlm.data.sources import documents
from darwinlm.database.levels import Ladder, ladders
from darwinlm.database.store import MANIFEST, Database, damaged_files
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.export.compressed import check_compressed
from darwinlm.export.folder import RECORD
from darwinlm.export.formats import formats_record
from darwinlm.export.gguf.file import header_bytes
from darwinlm.export.huggingface import require_canonical
from darwinlm.formats.rounding import require_formats
from darwinlm.formats.types import are_packed
from darwinlm.genome import Genome, Space, is_valid
from darwinlm.models.blocks import BlockStream
from darwinlm.models.check import check_streamed
from darwinlm.models.llama_cpp import rope
from darwinlm.models.source import ModelSource
from darwinlm.run.identity import Identities
from darwinlm.run.plan import predicted_work
from darwinlm.runtime import ranks
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.files import read_json, read_tensors, require_room, sha256_of, write_tensors
from darwinlm.runtime.memory import Need, require_memory
from darwinlm.runtime.output import pasted
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import RunDirectory, require_same
from darwinlm.runtime.seeds import python_random
from darwinlm.search.record import SearchRecord
from darwinlm.target.budget import Budget, uniform
from darwinlm.target.stock import WidthsOf
from darwinlm.target.target import target_of

_RESTART = "Choose another --output, or add --restart to `search` or `prune` to discard that search and begin anew."
_OTHER_OUTPUT = "Choose another --output, or ask for what is there."


class Run:
    """An opened run: everything that was asked has been checked, nothing long has been done.

    Args:
        config: what is asked.
        directory: where it lies or is to lie.
        restart: a search that lies there will be discarded, so it may be another one.
        above: the genome of a larger model that this one's is to be nested in: no level may be below it.

    Raises:
        RequestError: the request cannot be fulfilled; raised before any long work.
    """

    def __init__(
        self, config: RunConfig, directory: RunDirectory, *, restart: bool = False, above: Genome | None = None
    ) -> None:
        self.config, self.directory, self.above = config, directory, above
        self.source = ModelSource(config.model)
        require_canonical(self.source)
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.ladders: list[Ladder] = ladders(self.source.shape, config.database)
        self.space = Space.of(self.ladders, config.target.formats)
        self.nominal: WidthsOf = functools.partial(nominal_module, self.source.shape)
        shape, stored = self.source.shape, self.source.dtype.itemsize
        self.target = target_of(config, shape, self.space, stored, self.device, self.dtype, self._file_header())
        self.target.require_reachable(self.nominal)
        self.stream = BlockStream(self.source, self.device, self.dtype)
        self.identities = Identities(config, self.source.fingerprint, self.dtype)
        nested_in = self.space.named(above) if above else None
        self.search_identity = self.identities.search(self.target.times, nested_in)
        self.record = SearchRecord(directory.search, self.search_identity, self.space)
        self.source.require_context(config.blocks.sequence_length)
        if config.search.weights == "bfloat16" and self.dtype == torch.float32:
            raise RequestError(
                "search.weights is bfloat16, but the arithmetic is float32, which such weights would not compute in. Leave "
                "search.weights at auto, or give --dtype bfloat16."
            )
        self._check_identity(restart)
        self._check_room()
        check_streamed(self.source)

    def _file_header(self) -> int:
        """Bytes of a GGUF file before the numbers; 0 where no formats of ggml are asked.

        Raises:
            RequestError: no engine computes such models in these formats, or what rounds to one is missing.
        """
        target = self.config.target
        if not target.formats:
            return 0
        if are_packed(target.formats):
            check_compressed(self.source)
            return 0
        require_formats({*target.formats, *([target.embedding_format] if target.embedding_format else [])})
        if rope(self.source.family, self.source.config, self.source.shape).scale != 1.0:
            raise RequestError(
                "target.formats is for models whose queries a file holds as they are, but those of this one are scaled there "
                f"for RoPE of type '{self.source.config.rope_parameters['rope_type']}'. Leave it out, and quantize afterwards."
            )
        return header_bytes(self.source)

    def assembler(self, database: Database, *, cache_bytes: int = 0) -> Assembler:
        """What builds the models of genomes, in the formats that are asked for."""
        return Assembler(
            self.source,
            database,
            cache_bytes=cache_bytes,
            formats=self.config.target.formats,
            embedding_format=self.config.target.embedding_format or "",
        )

    @property
    def generations(self) -> int:
        """What the search that lies here has done."""
        state = self.record.load()
        return state.generation if state else 0

    def made_from(self, genome: Genome, database: Database) -> dict[str, Any]:
        """What a genome's model is made from."""
        known = {"genome": self.space.named(genome), "database": sha256_of(database.identity)}
        if not self.config.target.formats:
            return known
        embedding, levels = self.config.target.embedding_format or "", self.space.levels_of(genome)
        return {
            **known,
            "genome": levels,
            "rounded": ROUNDED,
            "formats": formats_record(
                self.source, self.space.formats_of(genome), embedding, stubs=self.space.formats[-1]
            ),
        }

    def _check_identity(self, restart: bool) -> None:
        """Compare with what the folder holds already, from the outside in."""
        where = self.directory.path
        if stored := self._stored_splits():
            require_same(stored["hessian"], self.identities.split("hessian"), where, "a run", _OTHER_OUTPUT)
        if (self.directory.database / MANIFEST).exists():
            database = Database.open(self.directory.database)
            require_same(database.identity, self.identities.database, where, "a database", _OTHER_OUTPUT)
            self._require_same_steps(database)
        if not restart and (stored := self.record.stored_identity()) is not None:
            require_same(stored, self.search_identity, where, "a search", _RESTART)

    def _require_same_steps(self, database: Database) -> None:
        held = {ladder.name: ladder.removed for ladder in database.ladders()}
        if other := [ladder.name for ladder in self.ladders if held.get(ladder.name, ladder.removed) != ladder.removed]:
            raise RequestError(
                f"The database in '{self.directory.path}' was built by an earlier DarwinLM, which gave {len(other)} modules "
                f"({other[0]} first) other steps than this one. {_OTHER_OUTPUT}"
            )

    def _check_room(self) -> None:
        """Room for what is still to be written."""
        value_bytes = self.source.dtype.itemsize
        needed = 0
        if not self.directory.blocks.exists():
            needed += 8 * self.config.blocks.sequence_length * sum(getattr(self.config.blocks, name) for name in SPLITS)
        built = sum(file.stat().st_size for file in self.directory.database.glob("*.safetensors"))
        needed += max(0, database_bytes(self.source.shape, self.ladders, value_bytes) - built)
        for name in set(self.config.target.formats):
            built = sum(file.stat().st_size for file in self.directory.database.glob(f"{name}/*.safetensors"))
            needed += max(0, rounded_bytes(self.source.shape, self.ladders, [name]) - built)
        if not self.directory.model.exists():
            widths = nominal_widths(self.source.shape, self.space.ladders, self.uniform_genome)
            each = 4 if self.config.target.formats else value_bytes  # what formats leave is kept in float32
            needed += int(1.1 * self.source.shape.with_layers(widths).parameters * each)
        require_room(self.directory.path, needed, "This run")

    def _stored_splits(self) -> dict[str, dict[str, Any]]:
        """The identities of the splits that lie in the folder; empty where there are none."""
        path = self.directory.blocks
        if not path.exists():
            return {}
        _, metadata = read_tensors(path)
        if "splits" not in metadata:
            raise RequestError(
                f"'{path}' does not say which text its blocks were drawn from: a training made it, or an earlier edition of "
                f"DarwinLM, whose runs cannot be continued. {_OTHER_OUTPUT}"
            )
        return json.loads(metadata["splits"])

    @functools.cached_property
    def uniform_genome(self) -> Genome:
        """`uniform` by the widths that shapes alone tell."""
        return self.uniform(self.nominal)

    def uniform(self, widths: WidthsOf) -> Genome:
        """The same share of every module gone, as the target wants it: the baseline.

        Args:
            widths: of modules at their levels.
        """
        return uniform(self.target.budget(widths), python_random(self.config.seed, "start"))

    def first(self, widths: WidthsOf) -> Genome:
        """The same, but within a larger model at no level below that one's: where the search begins."""
        return uniform(self.budget(widths), python_random(self.config.seed, "start"))

    def budget(self, widths: WidthsOf) -> Budget:
        """What every genome must keep; within a larger model, no level below that one's."""
        return self.target.budget(widths, self.above)

    @functools.cached_property
    def splits(self) -> Splits:
        """The token blocks; made once and kept, so that a continued run reads the same. Splits whose settings changed are
        drawn anew beside the others.

        Raises:
            RequestError: the others could not be drawn again, so that the new ones might not be disjoint from them.
        """
        path, asked = self.directory.blocks, {name: self.identities.split(name) for name in SPLITS}
        if ranks.is_first() and (stored := self._stored_splits()) != asked:
            log.info("Reading '%s'.", self.config.data)
            config, lineage = self.config, Lineage(self.config.model)
            splits = make_splits(config.data, config.blocks, self.source.tokenizer, config.seed, lineage)
            tensors = splits.tensors()
            tensors |= {name: self.source.begun(tensors[name]) for name in SPLITS}
            known, _ = read_tensors(path) if stored else ({}, {})
            for name in (name for name in SPLITS if name in known and stored[name] == asked[name]):
                if not torch.equal(known[name], tensors[name]):
                    raise RequestError(
                        f"The text of '{self.config.data}' is not what '{self.directory.path}' was begun with, so no other blocks "
                        "can be drawn beside those that are there. Leave the settings of blocks as they were, or choose another "
                        "--output."
                    )
            write_tensors(path, tensors, {"splits": json.dumps(asked), FOLDER: str(Path.cwd())})
        ranks.barrier()
        return Splits.of(read_tensors(path)[0])

    def finished_database(self) -> Database:
        """The database that lies here, whole; the first rank reads it to know that, so all must ask.

        Raises:
            RequestError: there is none, or it is not finished, or damaged.
        """
        folder = self.directory.database
        hint = f"Run `darwinlm database --output {pasted(self.directory.path)}` first."
        if not (folder / MANIFEST).exists():
            raise RequestError(f"'{self.directory.path}' holds no database yet. {hint}")
        database = Database.open(folder)
        if missing := [ladder.name for ladder in self.ladders if ladder.name not in database.modules]:
            raise RequestError(f"The database in '{folder}' lacks {len(missing)} modules, {missing[0]} first. {hint}")
        if damaged := ranks.broadcast(database.damaged() if ranks.is_first() else []):
            raise damaged_files(database, damaged)
        return database

    def genome(self) -> Genome:
        """The genome that lies here.

        Raises:
            RequestError: there is none, or it does not fit the model.
        """
        if not self.directory.genome.exists():
            raise RequestError(
                f"'{self.directory.path}' holds no genome yet. Run `darwinlm search --output {pasted(self.directory.path)}` first."
            )
        try:
            saved = read_json(self.directory.genome)
            genome = self.space.genome_of(saved["levels"], saved.get("formats", {}))
        except (KeyError, ValueError) as fault:
            raise DamagedFileError(f"'{self.directory.genome}' lacks {fault}. Run `darwinlm search` again.") from fault
        if not is_valid(self.space, genome):
            raise DamagedFileError(
                f"'{self.directory.genome}' has levels that the database has not. Run `darwinlm search` again."
            )
        return genome


@contextmanager
def opened(
    config: RunConfig,
    *,
    restart: bool = False,
    check: Callable[[Run], None] | None = None,
    needs: Sequence[Callable[[Work], Need]] = (),
) -> Iterator[Run]:
    """Check a request and open its run directory, alone.

    Args:
        config: what is asked.
        restart: a search that lies there will be discarded.
        check: raises what else is wrong with the request, before anything of the folder is changed.
        needs: memory of the stages that are asked for; of those that are done it is not asked.

    Raises:
        RequestError: the request cannot be fulfilled.
    """
    if found := missing(config, NEEDED) + violations(config):
        raise RequestError(*found)
    documents(config.data, config.blocks.text_field)
    directory = RunDirectory(config.path)
    source = ModelSource(config.model, weights=False)
    ranks.join()
    _require_memory(config, source, directory, needs, restart)  # before weights are fetched, or a folder is made
    with directory.locked() if ranks.is_first() else nullcontext():
        run = Run(config, directory, restart=restart)
        if check is not None:
            check(run)
        run.splits  # noqa: B018  a tokenizer that does not fit and too few tokens are found now
        if ranks.is_first():
            directory.save_settings(to_dict(config))
        yield run
        ranks.barrier()


def _require_memory(
    config: RunConfig,
    source: ModelSource,
    directory: RunDirectory,
    needs: Sequence[Callable[[Work], Need]],
    restart: bool,
) -> None:
    done = []
    with suppress(DamagedFileError, KeyError, TypeError):  # found and said later, where the files are read
        built = read_json(directory.database / MANIFEST)["modules"]
        done += [database_need] if len(built) == len(ladders(source.shape, config.database)) else []
        state = read_json(directory.search / "state.json")
        ended = state["generation"] >= config.search.generations or 0 < config.search.patience <= state["unbeaten"]
        if ended and not restart:
            done += [search_need, rounding_need, *([refit_need] if (directory.model / RECORD).is_file() else [])]
    if left := [need for need in needs if need not in done]:
        device = choose_device(config.device)
        work = predicted_work(config, source, device)
        require_memory([need(work) for need in left], device)
