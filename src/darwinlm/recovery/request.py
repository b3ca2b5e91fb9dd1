"""A post-training as it was asked for: everything is checked against model, teacher, text and folder before any long work."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from darwinlm.config import RunConfig, to_dict
from darwinlm.data.blocks import from_the_beginning, scored_apart
from darwinlm.data.lineage import RANGES, Lineage, Scored
from darwinlm.data.sources import documents
from darwinlm.data.stream import PackedStream
from darwinlm.data.tokens import Ranges
from darwinlm.errors import RequestError, first_line
from darwinlm.export.huggingface import require_canonical
from darwinlm.models.check import check_streamed
from darwinlm.models.source import ModelSource
from darwinlm.models.tokens import require_same_tokens, tokens_digest
from darwinlm.recovery.adapters import check_adapters
from darwinlm.recovery.batches import Rhythm
from darwinlm.recovery.plan import training_cost, training_need
from darwinlm.recovery.teacher_logits import Store
from darwinlm.runtime import ranks
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.files import read_json, read_tensors, require_room, sha256_of
from darwinlm.runtime.memory import require_memory
from darwinlm.runtime.output import pasted
from darwinlm.runtime.progress import log
from darwinlm.runtime.rundir import RunDirectory, require_same

_HOW = (
    "eval_every_tokens",
    "save_every_tokens",
    "micro_batch_sequences",
    "gradient_checkpointing",
    "compile",
    "fsdp",
    "report_to",
    "teacher_logits",
    "tokens",
    "epochs",
)
"""Settings of how, and of how it ends, not what: a begun training may go on with others."""
_OTHER_OUTPUT = "Choose another --output, or ask for what is there."


class Request:
    """What `darwinlm train` is asked for, checked.

    Args:
        config: model, data, output, seed, device, dtype, blocks and train count.

    Raises:
        RequestError: it cannot be fulfilled; raised before any long work.
    """

    def __init__(self, config: RunConfig) -> None:
        _check_given(config)
        self.config, self.train = config, config.train
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.path = output_of(config)
        self._check_memory()
        self.source = ModelSource(config.model)
        require_canonical(self.source)
        self.rhythm = Rhythm.of(self.train, ranks.world_size())
        self.source.require_context(self.train.sequence_length, "train.sequence_length")
        self.source.require_context(config.blocks.sequence_length)
        if self.train.method == "lora":
            check_adapters(self.source, self.train)
        self.teacher = self._checked_teacher() if self.train.teacher else None
        _check_trackers(self.train.report_to)
        self.identity_file = self.path / "train" / "identity.json"
        self._check_output()
        self._check_room()
        for source in filter(None, (self.source, self.teacher)):
            check_streamed(source)

    def check_text(self) -> None:
        """Read as much of the text as it takes to know that it suffices.

        Raises:
            RequestError: it does not, or cannot be read.
        """
        self.scored  # noqa: B018
        if self.store:
            self.store.missing()
        self.stream.require(self.rhythm.blocks * self.train.sequence_length)

    def end_after(self, done: int) -> None:
        """Take fewer tokens than are trained already as: end now."""
        if self.rhythm.steps < done:
            log.info("%d steps are done, more than --tokens asks for: the training ends with them.", done)
            self.rhythm = dataclasses.replace(self.rhythm, steps=done)

    def finished(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The summary of a training that is done.

        Raises:
            RequestError: it is asked to go on, but its state is gone.
        """
        asked, done = self.rhythm.steps, summary["steps"]
        if asked > done:
            raise RequestError(
                f"'{self.path}' holds a training that has ended after {done} steps ({summary['tokens']:,} tokens); {asked} are "
                f"asked. Train its result further: darwinlm train {pasted(self.path / 'model')}."
            )
        if asked < done:
            log.info("The training in '%s' has ended after %d steps already.", self.path, done)
        return summary

    def _checked_teacher(self) -> ModelSource:
        teacher = ModelSource(self.train.teacher)
        ours, theirs = self.source.shape, teacher.shape
        require_same_tokens(self.source, teacher)
        if ours.vocabulary != theirs.vocabulary:
            raise RequestError(
                f"'{teacher.name}' and '{self.source.name}' have the same tokens, but embeddings of {theirs.vocabulary:,} and "
                f"{ours.vocabulary:,} rows: they are padded otherwise, which is not supported. Give the model it was pruned from, "
                "or pad both alike (resize_token_embeddings)."
            )
        teacher.require_context(self.train.sequence_length, "train.sequence_length")
        if self.train.top_k > theirs.vocabulary:
            raise RequestError(
                f"train.top_k is {self.train.top_k}, but there are only {theirs.vocabulary} tokens. Lower it, or leave it at "
                "0 for the whole vocabulary."
            )
        if self.train.hidden_weight and (ours.hidden != theirs.hidden or len(ours.layers) != len(theirs.layers)):
            raise RequestError(
                f"train.hidden_weight compares hidden states layer by layer, but '{teacher.name}' has {len(theirs.layers)} "
                f"layers of {theirs.hidden} values and '{self.source.name}' {len(ours.layers)} of {ours.hidden}. Set it to 0."
            )
        return teacher

    def _check_output(self) -> None:
        directory = RunDirectory(self.path)
        if self.identity_file.exists():
            require_same(read_json(self.identity_file), self.identity, self.path, "a training", _OTHER_OUTPUT)
        elif held := [path.name for path in (directory.config, directory.model, directory.genome) if path.exists()]:
            raise RequestError(
                f"'{self.path}' holds something that is no training of this checkpoint ({', '.join(held)}). Choose another "
                "--output."
            )

    def _check_memory(self) -> None:
        """From configurations alone, before weights are fetched."""
        if (self.path / "summary.json").exists():
            return
        train = self.train
        shape = ModelSource(self.config.model, weights=False).shape
        alongside = train.teacher and (train.distill_weight or train.hidden_weight) and not train.teacher_logits
        teacher = ModelSource(train.teacher, weights=False).shape if alongside else None
        need = training_need(shape, train, self.dtype, ranks.world_size(), teacher, self.device.type == "cpu")
        require_memory([need], self.device)

    def _check_room(self) -> None:
        """The result, and the states: a new one is written before the old one goes."""
        if (self.path / "summary.json").exists():
            return
        states = 2 * 12 * training_cost(self.source.shape, self.train, self.dtype).trained_parameters
        require_room(
            self.path, int(1.1 * self.source.shape.parameters * self.source.dtype.itemsize) + states, "This training"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on."""
        config = self.config
        train = {f"train.{name}": value for name, value in to_dict(self.train).items() if name not in _HOW}
        names = ("sequence_length", "held_out", "held_out_data", "text_field")
        blocks = {f"blocks.{name}": getattr(config.blocks, name) for name in names}
        teacher = self.teacher.fingerprint[:16] if self.teacher else ""
        known = {
            "model": self.source.fingerprint[:16],
            "data": config.data,
            "seed": config.seed,
            "dtype": str(self.dtype),
        }
        return {**known, **blocks, **train, "train.teacher": teacher}

    @functools.cached_property
    def lineage(self) -> Lineage:
        """The runs that the checkpoint comes from."""
        return Lineage(self.config.model)

    @functools.cached_property
    def scored(self) -> Scored:
        """Text that is not trained on; once begun, what lies in the folder."""
        kept = RunDirectory(self.path).blocks
        if self.identity_file.exists() and kept.exists():
            tensors, _ = read_tensors(kept)
            return Scored(tensors["held_out"].long(), Ranges(tensors.get(RANGES)))
        config, tokenizer = self.config, self.source.tokenizer
        apart = scored_apart(config.data, config.blocks, tokenizer, self.lineage)
        found = apart or from_the_beginning(config.data, config.blocks, tokenizer, self.lineage)
        return dataclasses.replace(found, blocks=self.source.begun(found.blocks))

    @functools.cached_property
    def stream(self) -> PackedStream:
        """The text that is trained on."""
        blocks, train = self.config.blocks, self.train
        return PackedStream(
            self.config.data,
            blocks.text_field,
            self.source.tokenizer,
            train.sequence_length,
            train.shuffle_blocks,
            self.config.seed,
            train.epochs,
            self.lineage.ranges + self.scored.ranges,
            self.source.begin,
        )

    @functools.cached_property
    def store(self) -> Store | None:
        """Where the teacher's logits lie; None where it computes alongside."""
        if self.teacher is None or not self.train.teacher_logits:
            return None
        stream = self.stream
        names = ("source", "text_field", "length", "window", "seed")  # a block does not depend on epochs
        settings = {name: getattr(stream, name) for name in names} | {"without": stream.without.rows.tolist()}
        identity = {
            "text": sha256_of({**settings, "tokenizer": tokens_digest(self.source.tokenizer)}),
            "teacher": self.teacher.fingerprint[:16],
            "top_k": self.train.top_k,
            "temperature": self.train.temperature,
            "dtype": str(self.dtype),
        }
        folder = Path(self.train.teacher_logits).expanduser()
        return Store(folder, identity, self.train.sequence_length, self.train.top_k, self.rhythm.blocks)


def _check_given(config: RunConfig) -> None:
    missing = [
        f"No {name} is given: {hint}."
        for name, value, hint in (
            ("checkpoint", config.model, "a folder such as runs/llama/model, or a hub id"),
            ("data", config.data, "--data with a file, folder, hub data set or stdlib"),
            ("number of tokens", config.train.tokens, "--tokens, such as 50M or 10B"),
        )
        if not value
    ]
    if config.device not in ("auto", "cpu", "cuda"):
        missing.append(
            f"--device is '{config.device}', but a training takes cpu or cuda. Choose among GPUs by CUDA_VISIBLE_DEVICES."
        )
    if missing:
        raise RequestError(*missing)
    documents(config.data, config.blocks.text_field)


def _check_trackers(named: list[str]) -> None:
    """A tracker that is unknown or not installed is found now: Trainer says so only when all else is done."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as KNOWN

    for name in named if named not in (["all"], ["none"]) else ():
        if name not in KNOWN:
            listed = ", ".join(sorted(KNOWN))
            raise RequestError(f"train.report_to names '{name}', which transformers does not know. It knows: {listed}.")
        try:
            KNOWN[name]()
        except (RuntimeError, ImportError) as fault:
            raise RequestError(
                f"train.report_to names '{name}', which cannot be used here ({first_line(fault)}). Install it, or leave it out."
            ) from fault


def output_of(config: RunConfig) -> Path:
    """Where the result goes: `output`; else `trained` in the run whose checkpoint it is, else beside the checkpoint."""
    if config.output:
        return config.path
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        return Path(f"{config.model.rstrip('/').split('/')[-1]}-trained")
    here = folder.resolve()
    if here.name == "model" and RunDirectory(here.parent).config.exists():
        return here.parent / "trained"
    return here.with_name(f"{here.name}-trained")
