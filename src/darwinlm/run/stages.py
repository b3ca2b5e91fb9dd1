"""Database, search, refit and export of an opened run. Each stage continues where it stopped."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.cost import plan_memory
from darwinlm.database.build import build_database
from darwinlm.database.store import MANIFEST, Database, damaged_files
from darwinlm.export.folder import discard, record_of
from darwinlm.export.forms import discard_forms
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.judge import judge
from darwinlm.refit.store import Refits
from darwinlm.rounding import round_levels
from darwinlm.run.request import Run
from darwinlm.run.results import card_facts
from darwinlm.runtime import ranks
from darwinlm.runtime.files import remove_folder, sha256_of, write_json
from darwinlm.runtime.placement import Placement, free_host_memory
from darwinlm.runtime.progress import log
from darwinlm.search.evolution import finished
from darwinlm.search.fitness import Pools, Teacher
from darwinlm.search.loop import diverse_founders, first_parent, search
from darwinlm.search.record import SearchState
from darwinlm.search.samples import beginning
from darwinlm.search.selection import TrainedFitness
from darwinlm.target.stock import StockBudget


def database_stage(run: Run, *, rebuild: bool = False) -> Database:
    """The finished database; built as far as it is missing.

    Args:
        rebuild: make damaged modules again instead of refusing them.
    """
    folder = run.directory.database
    exists = (folder / MANIFEST).exists()
    database = Database.open(folder) if exists else Database(folder, run.identities.database)
    if damaged := ranks.broadcast(database.damaged(thorough=rebuild) if ranks.is_first() else []):
        if not rebuild:
            raise damaged_files(database, damaged)
        for name in damaged:
            del database.modules[name]
    with run.directory.timings.timed("database"):
        build_database(
            database, run.ladders, run.stream, run.splits.hessian, run.config.database, _placement(run, "database")
        )
    return database


def rounding_stage(run: Run, database: Database) -> None:
    """The levels of a finished database in the formats that are asked for, as far as they are missing."""
    if run.config.target.formats:
        with run.directory.timings.timed("formats"):
            batch, placement = run.config.database.batch_sequences, _placement(run, "rounding")
            round_levels(run.assembler(database), run.stream, run.splits.hessian, batch, placement)


def _placement(run: Run, stage: Literal["database", "rounding", "refit"]) -> Placement:
    """Where the hidden states of the calibration go: what the stage's own work needs stays free."""
    dense, config = run.source.shape, run.config
    memory = plan_memory(dense, dense, config, run.source.dtype.itemsize, run.dtype, run.device.type == "cpu")
    where = config.database.hidden_states
    return Placement(run.device, run.directory.database, where, getattr(memory, stage), ranks.local_world_size())


def search_stage(run: Run, database: Database, *, restart: bool = False) -> Genome:
    """The genome that the search ends with; saved as `genome.json`.

    Args:
        database: finished.
        restart: discard a search that lies here.
    """
    if restart and ranks.is_first():
        _discard_search(run)
    ranks.barrier()
    state = ranks.broadcast(run.record.load())
    rounding_stage(run, database)
    if state is None or not finished(state, run.config.search):
        if ranks.is_first():  # it is no longer the result
            run.directory.genome.unlink(missing_ok=True)
        with run.directory.timings.timed("search"):
            state = _search(run, run.assembler(database, cache_bytes=cache_bytes()))
    levels, formats = run.space.levels_of(state.parent), run.space.formats_of(state.parent)
    parameters = run.assembler(database).shape(state.parent).parameters
    totals = {**run.space.totals(state.parent), "parameters": parameters}
    if ranks.is_first():
        in_formats = {"formats": formats} if run.config.target.formats else {}
        write_json(run.directory.genome, {"levels": levels, **in_formats, "totals": totals})
    return state.parent


def _search(run: Run, assembler: Assembler) -> SearchState:
    teacher = make_teacher(run, _scored(run.splits.select, run.config.search))
    pools = Pools(run.splits.train, teacher, run.stream)

    @functools.cache
    def check(genome: Genome) -> dict[str, float]:
        quality = held_out().quality(assembler.stream(genome, run.device, run.dtype))
        return {"kl": quality.kl or 0.0, "perplexity": quality.perplexity}

    held_out = functools.cache(lambda: HeldOut(run.splits.held_out, run.stream, head=pools.teacher.head))
    budget, config, seed = run.budget(assembler.module_widths), run.config.search, run.config.seed

    if isinstance(budget, StockBudget) and len(budget.open[0]) < run.space.ladders[0].top:
        offered = ", ".join(map(str, budget.open[0]))
        log.info(
            "Stock shape: attentions that stay are tried at level %s; %s takes no other number of heads.",
            offered,
            run.source.family.classes["causal"],
        )

    def start() -> Genome:
        first = run.first(assembler.module_widths)
        return first_parent(first, budget, assembler, pools, config, seed, run.record, check)

    fitness = TrainedFitness(assembler, pools, config, seed, run.dtype)
    founders = functools.partial(diverse_founders, budget, assembler, pools, config, seed) if config.diverse else None
    return search(start, run.space, budget, fitness, config, seed, run.record, check, founders)


def make_teacher(run: Run, tokens: Tensor | None = None) -> Teacher:
    """The dense model on the blocks that candidates are scored on, or on others."""
    tokens = run.splits.select if tokens is None else tokens
    head = run.source.head().to(run.device, torch.float32)
    return Teacher(tokens, run.stream.final_hidden(tokens), head)


def _scored(blocks: Tensor, config: SearchConfig) -> Tensor:
    """The blocks as far as a search looks into them."""
    asked = (min(count, blocks.numel()) for count in (config.start_tokens, *config.select_tokens))
    return blocks[:, : max(beginning(blocks, count, config.sequence_tokens) for count in asked)]


def cache_bytes() -> int:
    """Host memory for shrunk modules: a quarter of what is free, shared by the ranks of this machine."""
    return free_host_memory() // 4 // ranks.local_world_size()


def _discard_search(run: Run) -> None:
    discard_forms(run.directory.model)
    discard(run.directory.model)
    for path in (run.directory.search, run.directory.refit):
        remove_folder(path)
    for path in (run.directory.genome, run.directory.summary, run.directory.report):
        path.unlink(missing_ok=True)
    run.directory.timings.forget("search", "refit", "export", "evaluation")


def refit_stage(run: Run, database: Database, genome: Genome) -> Refits | None:
    """The genome's model refitted on its own inputs; None where that is not asked for, or has no lower KL at any depth."""
    refits = refitted(run, database, genome)
    if refits is None or refits.depth:
        return refits
    log.warning(
        "The refit does not lower KL (by the first layers that have it %s): the model stays as the search left it.",
        refits.kl_by_depth,
    )
    return None


def refitted(run: Run, database: Database, genome: Genome) -> Refits | None:
    """The refit, completed and judged; None where it is not asked for."""
    asked, blocks = run.config.refit.tokens, run.splits.hessian
    if not asked:
        return None
    tokens = blocks[: max(2, asked // blocks.shape[1])]
    made_from = {**run.made_from(genome, database), "tokens": tokens.numel(), "clipped": True}
    made_from["choose_again"] = run.config.refit.choose_again
    refits = Refits(run.directory.refit, made_from)
    if not ranks.broadcast(refits.finished(len(run.stream))):
        assembler, batch = run.assembler(database), run.config.database.batch_sequences
        with run.directory.timings.timed("refit"):
            pruned = assembler.stream(genome, run.device, run.dtype)
            kept = functools.partial(assembler.mlp_columns, genome) if run.config.refit.choose_again else None
            in_format = functools.partial(assembler.in_format, genome) if run.config.target.formats else None
            refit_blocks(refits, run.stream, pruned, kept, tokens, batch, _placement(run, "refit"), in_format)
            if ranks.is_first():
                judge(refits, run.stream, pruned, run.splits.select)
    refits.kl, refits.judged_depth = ranks.broadcast((refits.kl, refits.judged_depth))
    return refits


def export_stage(run: Run, database: Database, genome: Genome, refits: Refits | None = None) -> None:
    """Write the genome's checkpoint to `model/`, with refitted matrices where there are, unless it lies there already."""
    made_from = run.made_from(genome, database) | {"generations": run.generations}  # the card says how many
    if refits:
        made_from["refit"] = sha256_of(refits.identity)
    if stock := run.config.target.shape == "stock":
        made_from["shape"] = "stock"
    if record_of(run.directory.model) == made_from:
        return
    discard_forms(run.directory.model)
    with run.directory.timings.timed("export"):
        facts = card_facts(run, genome, refits)
        export_checkpoint(run.assembler(database), genome, run.directory.model, facts, made_from, refits, stock=stock)
