"""The portable checkpoint: zero stubs in place of absent modules, for engines in which no layer may lack one.

It computes what the canonical checkpoint computes and is a little larger. Layers still differ in width, so it ships the
modeling file, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from darwinlm.export.folder import record_of
from darwinlm.export.huggingface import write_checkpoint
from darwinlm.export.words import read_card
from darwinlm.models.heterogeneous import heterogeneous_config
from darwinlm.models.sites import framed
from darwinlm.models.source import ModelSource
from darwinlm.models.stubs import stubbed, stubbed_layer
from darwinlm.runtime.files import require_room

_NOTE = """
## Portable form
Modules that pruning removed are here as zero stubs (attention of {heads} query and KV head(s), MLP of 32 channels), which add
nothing: {stubs} of them, {parameters:,} parameters in all instead of {canonical:,}.
"""


def write_portable(source: ModelSource, folder: Path, heads: int = 1) -> None:
    """Write a checkpoint with stubs; the folder appears whole or not at all.

    Args:
        source: the canonical checkpoint.
        folder: where the portable one goes; one that lies there is replaced.
        heads: query and KV heads of a stub attention; the tensor-parallel size where heads are split.

    Raises:
        RequestError: the folder holds something else, or the disk has no room.
    """
    shape = stubbed(source.shape, heads)
    require_room(folder.parent, shape.parameters * source.dtype.itemsize, "This checkpoint")
    config = heterogeneous_config(source.family, source.config, shape.layers)
    note = _NOTE.format(
        heads=heads,
        stubs=sum(len(widths.gone) for widths in source.shape.layers),
        parameters=shape.parameters,
        canonical=source.shape.parameters,
    )
    write_checkpoint(
        folder,
        source,
        config,
        _tensors(source, heads),
        card=read_card(source) + note,
        made_from={**(record_of(source.folder) or {}), "portable": heads},
    )


def _tensors(source: ModelSource, heads: int) -> Iterator[tuple[str, Tensor]]:
    """(full name, tensor) layer by layer, in the checkpoint's dtype."""
    layers = (stubbed_layer(source, i, source.layer(i), heads) for i in range(len(source.shape.layers)))
    return framed(lambda name: source.tensors([name])[name], source.shape.tied, layers)
