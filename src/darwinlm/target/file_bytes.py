"""Bytes of a model's file, GGUF or packed safetensors, by the widths and formats of its modules, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from darwinlm.formats.types import stored_bytes
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import KINDS, Kind
from darwinlm.models.stubs import CHANNELS
from darwinlm.models.widths import LayerWidths

_ALIGNED, _TENSORS, _WORDS = 32, 16, 1024
"""Bytes that a tensor of GGUF begins at a multiple of; most tensors of a layer; words that differ from the dense model's."""
_DESCRIBED = 3 * 160
"""Bytes by which safetensors describe a packed matrix, whose numbers, scales and shape are tensors of their own."""


@dataclass(frozen=True)
class FileBytes:
    """What a file takes, or a few bytes more: each tensor counts with what may lie between it and the next one."""

    shape: ModelShape
    """The model that is pruned."""
    stored: str
    """Type of modules in no format."""
    embedding: str
    """Type of embedding and head."""
    stubs: str
    """Type of what stands in GGUF for modules that are gone, the smallest of all; empty of safetensors, which have no such."""
    header: int = 0
    """Bytes before the tensors of GGUF: metadata, tokenizer, names."""

    @property
    def outside(self) -> int:
        """All but the modules; where one is gone, its stub is there."""
        shape, count = self.shape, len(self.shape.layers)
        embeddings = (1 if shape.tied else 2) * stored_bytes((shape.vocabulary, shape.hidden), self.embedding)
        norm, rotary = stored_bytes((shape.hidden,), ""), stored_bytes((shape.head_dim,), "")
        between = (_ALIGNED if self.stubs else _DESCRIBED) * (_TENSORS * count + 4) + _WORDS
        return self.header + between + embeddings + norm + rotary + count * self._stubs(self._stub)

    @property
    def _stub(self) -> LayerWidths:
        return LayerWidths(1, 1, CHANNELS)

    def module(self, widths: LayerWidths, format_: str) -> int:
        """What modules take beyond their stubs, in a format or, where its name is empty, as they are stored."""
        absent: list[Kind] = [kind for kind in KINDS if not widths.has(kind)]
        return max(0, self._stored(widths, format_) - self._stubs(self._stub.without(absent)))

    def _stubs(self, widths: LayerWidths) -> int:
        return self._stored(widths, self.stubs) if self.stubs else 0

    def _stored(self, widths: LayerWidths, format_: str) -> int:
        if not any(map(widths.has, KINDS)):
            return 0
        outlines = self.shape.stock.outlines(0, widths)
        return sum(stored_bytes(size, format_ or self.stored) for size in outlines.values() if math.prod(size))
