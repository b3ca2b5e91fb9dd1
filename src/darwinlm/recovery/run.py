"""`darwinlm train`: a checkpoint in, the same checkpoint trained out. The same command continues a killed one."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from darwinlm.config import RunConfig, to_dict
from darwinlm.data.lineage import FOLDER, RANGES
from darwinlm.data.stream import TextEnds
from darwinlm.errors import RequestError
from darwinlm.export.card import without_places
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole
from darwinlm.recovery.adapters import add_adapters
from darwinlm.recovery.arguments import training_arguments
from darwinlm.recovery.batches import Batches
from darwinlm.recovery.held_out import Watch
from darwinlm.recovery.history import History, draw_curves
from darwinlm.recovery.objective import Objective
from darwinlm.recovery.request import Request
from darwinlm.recovery.result import write_result
from darwinlm.recovery.state import states, step_of
from darwinlm.recovery.teacher import LiveTeacher
from darwinlm.recovery.teacher_logits import StoredTeacher, fill
from darwinlm.recovery.trainer import Course, Recovery
from darwinlm.runtime import ranks
from darwinlm.runtime.device import peak_memory_bytes
from darwinlm.runtime.files import read_json, read_lines, write_json, write_tensors
from darwinlm.runtime.progress import log, progress
from darwinlm.runtime.rundir import RunDirectory


def run_train(config: RunConfig) -> dict[str, Any]:
    """Train a checkpoint; returns what `summary.json` holds, on the first rank; ranks other than it get nothing.

    `OUTPUT/model` is the result, `OUTPUT/train/history.jsonl` its course, `OUTPUT/train/curves.png` the picture of it.

    Args:
        config: `model` is the checkpoint, pruned or dense; data, output, seed, device, dtype, blocks and train count.

    Raises:
        RequestError: the request cannot be fulfilled; raised before any long work, unless the text ends on the way or the
            loss is no longer finite.
    """
    ranks.join()
    request = Request(config)
    directory = RunDirectory(request.path)
    with directory.locked() if ranks.is_first() else nullcontext():
        if directory.summary.exists():
            return request.finished(read_json(directory.summary)) if ranks.is_first() else {}
        state = ranks.all_gather(next(reversed(states(request.path / "train")), None))[0]
        request.end_after(step_of(state))
        if request.rhythm.steps > step_of(state):
            request.check_text()
        if ranks.is_first():
            _begin(request, directory)
        ranks.barrier()
        folder = request.path / "train"
        with directory.timings.timed("train"):
            watch = _watch(request)
            last = folder / f"state-{request.rhythm.steps}"
            if request.rhythm.steps > step_of(state):
                _fit(request, folder, watch, state)
        return _finish(request, directory, last, watch) if ranks.is_first() else {}


def _begin(request: Request, directory: RunDirectory) -> None:
    """Write what the folder is for."""
    request.identity_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(request.identity_file, request.identity)
    directory.save_settings({**to_dict(request.config), "output": str(request.path)})
    if not directory.blocks.exists():
        held_out = {"held_out": request.scored.blocks.to(torch.int32), RANGES: request.scored.ranges.rows}
        write_tensors(directory.blocks, held_out, {FOLDER: str(Path.cwd())})


def _watch(request: Request) -> Watch:
    stream = BlockStream(request.teacher, request.device, request.dtype) if request.teacher else None
    return Watch(request.scored.blocks, stream, request.train.micro_batch_sequences)


def _fit(request: Request, folder: Path, watch: Watch, state: Path | None) -> None:
    """The training, from a state on; leaves the last state, also where the text ends before."""
    train, config = request.train, request.config
    done = step_of(state)
    log.info("%s", _announcement(request, done))
    student: Any = load_whole(request.source, torch.device("cpu"), torch.float32)
    if train.method == "lora":
        add_adapters(student, train, config.seed)
    if train.gradient_checkpointing:
        enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # the second name is that of transformers before 5.20
    layers = sorted({type(layer).__name__ for layer in student.get_decoder().layers})
    compared = [i for i, widths in enumerate(request.source.shape.layers) if not widths.empty]
    arguments = training_arguments(train, request.rhythm, folder, request.device, request.dtype, layers, state is None)
    batches = Batches(request.stream, request.rhythm, ranks.rank())
    history = History(folder / "history.jsonl", done) if ranks.is_first() else None
    with progress("Training", request.rhythm.steps, done) as step_done:
        course = Course(config.seed, folder, history, lambda model: watch.quality(model, request.device), step_done)
        objective = Objective(student, train, compared)
        trainer = Recovery(objective, arguments, train, batches, _teacher(request, compared), course)
        try:
            trainer.train(resume_from_checkpoint=str(state) if state else None)
        except TextEnds as fault:
            raise _ended(trainer, request, fault) from fault


def _ended(trainer: Recovery, request: Request, fault: TextEnds) -> RequestError:
    """Keep the state, and say how it goes on."""
    step = trainer.state.global_step
    if not step:
        return fault
    trainer.save()
    return RequestError(
        f"{fault} The state of step {step} is saved. The same command goes on with --train.epochs "
        f"{request.train.epochs + 1}; with --tokens {step * request.train.batch_tokens} it ends there, and the result can be "
        "trained further on other text."
    )


def _teacher(request: Request, compared: list[int]) -> LiveTeacher | StoredTeacher | None:
    train = request.train
    if request.teacher is None or not (train.distill_weight or train.hidden_weight):
        return None
    store = request.store
    if store is None:
        return LiveTeacher(request.teacher, train, compared, request.device, request.dtype)
    if ranks.all_gather(store.missing())[0]:
        live = LiveTeacher(request.teacher, train, [], request.device, request.dtype)
        fill(store, request.stream, live, request.device, train.micro_batch_sequences)
    return StoredTeacher(store, train, request.device)


def _announcement(request: Request, done: int) -> str:
    train, rhythm = request.train, request.rhythm
    what = "adapters" if train.method == "lora" else "all weights"
    towards = f", {train.distill_weight:g} of the loss towards '{train.teacher}'" if train.teacher else ""
    begun = f", {done} of them done" if done else ""
    return (
        f"Training {what} of '{request.source.name}' on {rhythm.steps} steps{begun} of {train.batch_tokens:,} tokens of "
        f"'{request.config.data}'{towards}, on {rhythm.ranks} rank(s); the result goes to '{request.path / 'model'}'."
    )


def _finish(request: Request, directory: RunDirectory, last: Path, watch: Watch) -> dict[str, Any]:
    """The result from the last state: checkpoint, picture, summary."""
    folder = last.parent
    write_result(
        request.source,
        last,
        directory.model,
        request.train,
        request.config.seed,
        _facts(request),
        {"trained": request.identity},
    )
    lines = read_lines(folder / "history.jsonl")
    draw_curves(lines, folder / "curves.png")
    trained = ModelSource(str(directory.model))
    first = next(line["held_out"] for line in lines if "held_out" in line)

    def scored(source: ModelSource) -> dict[str, float]:
        return watch.quality_of_checkpoint(BlockStream(source, request.device, request.dtype))

    summary = {
        "parameters": trained.shape.parameters,
        "before": first
        if request.dtype == torch.float32
        else scored(request.source),  # a look computes in float32 masters
        "trained": scored(trained),
        "tokens": request.rhythm.steps * request.train.batch_tokens,
        "steps": request.rhythm.steps,
        "seconds": directory.timings.seconds(),
        "peak_memory_bytes": peak_memory_bytes(request.device),
        "settings": to_dict(request.config),
        "model": str(directory.model),
    }
    write_json(directory.summary, summary)
    shutil.rmtree(last)
    return summary


def _facts(request: Request) -> dict[str, Any]:
    train, rhythm, data = request.train, request.rhythm, without_places(request.config.data)
    facts: dict[str, Any] = {
        "tokens": f"{rhythm.steps * train.batch_tokens:,} of `{data}`, in sequences of {train.sequence_length:,}",
        "batch": f"{train.batch_tokens:,} tokens, {rhythm.steps:,} steps",
        "optimizer": f"AdamW, learning rate {train.learning_rate:g}, {train.schedule}, {train.warmup_steps} steps of "
        f"warm-up, weight decay {train.weight_decay:g}",
        "seed": request.config.seed,
    }
    if train.method == "lora":
        facts["adapters"] = f"rank {train.lora_rank}, alpha {train.lora_alpha}, {train.lora_targets}; merged"
    if train.teacher:
        names = ("distill_weight", "temperature", "top_k", "hidden_weight")
        told = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(train).items() if name in names)
        facts["teacher"] = f"`{without_places(train.teacher)}`: {told}"
    return facts
