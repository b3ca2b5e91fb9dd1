"""A genome's model after a short distillation, alike for every benchmark that asks what training leaves of a difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from recovery import METHODS, RATES, TRAIN

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run


def distilled(
    run: Run, assembler: Assembler, genome: Genome, refits: Refits | None, tokens: int, data: str, folder: Path
) -> BlockStream:
    """The trained model, toward the run's own.

    Args:
        run: its model is the teacher, its blocks are those of the training.
        assembler: of the genome's model.
        genome: the levels.
        refits: output matrices that take the place of the database's.
        tokens: to train on.
        data: the text.
        folder: where checkpoints go; it must stay until the model was read.
    """
    export_checkpoint(assembler, genome, folder / "model", {}, {}, refits)
    train = {**TRAIN, **METHODS["distillation"], "learning_rate": RATES["distillation"], "teacher": run.config.model}
    train |= {"sequence_length": run.config.blocks.sequence_length}
    train |= dict.fromkeys(("tokens", "save_every_tokens", "eval_every_tokens"), tokens)
    blocks = dataclasses.asdict(run.config.blocks)
    trained = darwinlm.train(str(folder / "model"), data=data, output=str(folder / "out"), blocks=blocks, train=train)
    return BlockStream(ModelSource(str(trained.folder)), run.device, run.dtype)
