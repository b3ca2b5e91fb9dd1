"""What a run ends with: the facts of the model card, the summary of its quality, the report."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

from darwinlm.assemble import Assembler
from darwinlm.config import described, to_dict
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError
from darwinlm.export.card import without_places
from darwinlm.formats.types import are_packed
from darwinlm.genome import Genome
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.measure.report import write_report
from darwinlm.models.blocks import BlockStream
from darwinlm.models.sites import TITLES
from darwinlm.models.source import ModelSource
from darwinlm.models.stock_form import DEPTH
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run
from darwinlm.runtime.device import peak_memory_bytes
from darwinlm.runtime.files import read_json, sha256_of, write_json
from darwinlm.runtime.progress import log


def card_facts(run: Run, genome: Genome, refits: Refits | None = None) -> dict[str, Any]:
    """What the model card says of how the checkpoint was made."""
    config = run.config
    tokens, data = config.blocks.hessian * config.blocks.sequence_length, without_places(config.data)
    before = run.source.shape.parameters / run.source.shape.whole.parameters
    search, start = config.search, "costs of one backward pass, exact allocations, their KL to the dense model"
    found = {"search": start if search.start == "linearized" else "none: the same share of every module"}
    if done := run.generations:
        rate = f"AdamW, learning rate {search.learning_rate:g}"
        ways = {"cross_entropy": rate, "distillation": f"KL to the dense model, {rate}", "refit": "refitted"}
        found = {
            "search": f"{done} generations of {search.offspring} offspring, from the {search.start} start",
            "survivors": search.survivors,
            "trial training": f"{search.train_tokens} tokens, {ways[search.training]}",
            "selection": f"{search.select_tokens} tokens, KL to the dense model",
        }
    return {
        **({"pruned before": f"to {before:.1%} of its parameters"} if any(run.space.present) else {}),
        "target": described(config.target, config.database.levels),
        **({"formats": _told_formats(run, genome)} if config.target.formats else {}),
        "Hessians": f"{tokens:,} tokens of `{data}`, relative damping {config.database.rel_damp}",
        "attention unit": config.database.attention_unit,
        **found,
        **({"refit": _told(refits)} if refits else {}),
        "seed": config.seed,
    }


def _told_formats(run: Run, genome: Genome) -> str:
    """Which modules are in which format, and how the checkpoint holds them."""
    held: dict[str, dict[str, list[int]]] = {}
    for ladder, rung in zip(run.space.ladders, genome):
        if format_ := ladder.format(rung):
            held.setdefault(format_, {}).setdefault(TITLES[ladder.kind], []).append(ladder.layer)
    parts = []
    for format_, kinds in held.items():
        listed = "; ".join(f"{kind} {', '.join(map(str, layers))}" for kind, layers in kinds.items())
        parts.append(f"{format_} ({listed})")
    embedding = run.config.target.embedding_format
    parts += [f"{embedding} (embedding and head)"] if embedding else []
    engine = "compressed-tensors" if are_packed(run.config.target.formats) else "gguf"
    return (
        f"{', '.join(parts) or 'none but the dense model has'}. The weights here are, in float32, what these formats leave; "
        f"`darwinlm export --format {engine}` stores them in that space, with the same numbers"
    )


def _told(refits: Refits) -> str:
    """What a refit was made on, and what it gained."""
    before, after = refits.before_and_after
    return (
        f"output matrices on the pruned model's own inputs, {refits.identity['tokens']:,} tokens, in the first "
        f"{refits.depth} layers; KL to the dense model {before:.4f} -> {after:.4f} on tokens it was not fitted to"
    )


def evaluation_stage(run: Run, database: Database, genome: Genome, refits: Refits | None = None) -> dict[str, Any]:
    """Score dense, uniform and pruned on the held-out blocks, with and without its refit.

    Returns:
        What `summary.json` holds; one that is there already is not made again.
    """
    known = [run.space.named(genome), run.identities.quality, *([refits.identity] if refits else [])]
    if run.config.target.formats:
        known.append(run.made_from(genome, database))
    made_from = sha256_of(known)
    if run.directory.summary.exists():
        with suppress(DamagedFileError, AttributeError):  # made again
            summary = read_json(run.directory.summary)
            if summary.get("made_from") == made_from:
                return summary
    with run.directory.timings.timed("evaluation"):
        held_out = HeldOut(run.splits.held_out, run.stream)
        assembler = run.assembler(database)
        uniform = run.uniform(assembler.module_widths)
        exported = BlockStream(ModelSource(str(run.directory.model)), run.device, run.dtype)
        qualities: dict[str, Quality] = {
            "dense": held_out.dense_quality(),
            "uniform": held_out.quality(assembler.stream(uniform, run.device, run.dtype)),
            "pruned": held_out.quality(exported),
        }
        if refits:
            qualities["before_refit"] = held_out.quality(assembler.stream(genome, run.device, run.dtype))
    summary = {
        **{name: dataclasses.asdict(quality) for name, quality in qualities.items()},
        "target": to_dict(run.config.target),
        "achieved": _achieved(run, genome, qualities, assembler),
        "seconds": run.directory.timings.seconds(),
        "peak_memory_bytes": peak_memory_bytes(run.device),
        "settings": to_dict(run.config),
        "made_from": made_from,
    }
    write_json(run.directory.summary, summary)
    return summary


def _achieved(run: Run, genome: Genome, qualities: dict[str, Quality], assembler: Assembler) -> dict[str, Any]:
    shares = {
        kind: total / sum(run.ladders[i].top for i in run.space.members(kind))
        for kind, total in run.space.totals(genome).items()
    }
    levels = {f"{kind}_level": round(share * run.config.database.levels, 4) for kind, share in shares.items()}
    found: dict[str, Any] = {
        **levels,
        "parameter_ratio": qualities["pruned"].parameters / qualities["dense"].parameters,
    }
    if any(run.space.present):  # dense is then the model as it was given
        found["parameter_ratio_to_original"] = qualities["pruned"].parameters / run.source.shape.whole.parameters
    if run.config.target.shape == "stock":
        config = ModelSource(str(run.directory.model), weights=False).config
        found["shape"] = {name: getattr(config, name) for name in (DEPTH, *run.source.family.width_fields.values())}
    return {**found, "limits": run.target.achieved(genome, assembler.module_widths)}


def report_stage(run: Run) -> None:
    """Write `report.html`; results of other commands that lie in the folder damaged do not spoil the run's end."""
    try:
        write_report(run.directory.path)
    except DamagedFileError as fault:
        log.warning("No report: %s", fault)
