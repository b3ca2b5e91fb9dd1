"""How a tokenizer cuts text, in llama.cpp's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cut:
    """The part of a vocabulary that depends on the kind of tokenizer; see `Vocabulary` for the fields."""

    model: str
    pre: str
    types: Mapping[str, int]
    """Token -> type of GGUF, where that is not 1 (normal)."""
    merges: list[str] | None = None
    scores: Mapping[str, float] | None = None
    add_space_prefix: bool = False
    notes: list[str] = field(default_factory=list)
