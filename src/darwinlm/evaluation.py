"""`darwinlm eval`: perplexity of a checkpoint on any text, and its KL to another."""

from __future__ import annotations

from pathlib import Path

from darwinlm.config import BlocksConfig, RunConfig
from darwinlm.data.blocks import from_the_beginning
from darwinlm.errors import RequestError
from darwinlm.measure.quality import HeldOut, Quality
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.files import read_tensors
from darwinlm.runtime.rundir import RunDirectory


def run_eval(config: RunConfig, against: str = "") -> dict[str, Quality]:
    """Score a checkpoint, and the one it is compared with.

    Without `config.data`, a checkpoint inside a run directory is scored on that run's held-out blocks. Otherwise the
    first `blocks.held_out` blocks of the data are read.

    Args:
        config: model, data, blocks, device and dtype count.
        against: the dense model; none gives perplexity alone.

    Returns:
        By name: `dense` where there is one, and `model`.
    """
    if not config.model:
        raise RequestError("No model is given: a folder such as runs/llama/model, or a hub id.")
    source = ModelSource(config.model, trust_remote_code=config.trust_remote_code)
    if config.data:
        source.require_context(config.blocks.sequence_length)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    stream = BlockStream(source, device, dtype)
    dense = (
        BlockStream(ModelSource(against, trust_remote_code=config.trust_remote_code), device, dtype)
        if against
        else None
    )
    held_out = HeldOut(_tokens(source, config.data, config.blocks), dense)
    found = {"dense": held_out.dense_quality()} if dense else {}
    return {**found, "model": held_out.quality(stream)}


def _tokens(source: ModelSource, data: str, config: BlocksConfig):
    if data:
        return from_the_beginning(data, config, source.tokenizer)
    run = RunDirectory(Path(source.folder).resolve().parent)
    if not run.blocks.exists():
        raise RequestError("No text is given: --data with a file, folder, hub data set or stdlib.")
    tensors, _ = read_tensors(run.blocks)
    return tensors["held_out"].long()
