"""What a checkpoint remembers of the formats that its modules were searched in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from darwinlm.export.folder import record_of
from darwinlm.formats.types import are_packed
from darwinlm.models.source import ModelSource

MIXED = "mixed"
"""In place of a dtype: a type for each module, of a checkpoint that was searched with formats."""
_STORED_AS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def stored_as(source: ModelSource) -> str:
    """The dtype that a checkpoint is stored in, as ggml names it."""
    return _STORED_AS.get(source.dtype, "f16")


def formats_record(source: ModelSource, modules: Mapping[str, str], embedding: str, stubs: str) -> dict[str, Any]:
    """What a checkpoint that is cut from `source` remembers of its formats.

    Args:
        source: the dense model.
        modules: module -> format, of those that have one.
        embedding: format of embedding and head; empty for the checkpoint's own.
        stubs: format of what stands for modules that are gone.
    """
    return {"modules": dict(modules), "embedding": embedding, "stubs": stubs, "stored": stored_as(source)}


def formats_of(source: ModelSource) -> dict[str, Any]:
    """What a checkpoint says of its formats, as `formats_record` made it; empty where it was searched without."""
    return (record_of(source.folder) or {}).get("formats", {})


def searched_for_vllm(source: ModelSource) -> bool:
    """Whether its formats are those of packed whole numbers, and not of ggml."""
    return are_packed([formats_of(source).get("stubs", "")])
