"""What an engine must offer to be measured.

Letters: S = sequences at once, T = tokens of each that are read, N = tokens that are written after the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GGUF = ".gguf"
"""How the name of a model for llama.cpp ends."""


@dataclass(frozen=True)
class Facts:
    """What a model is, measured or not."""

    name: str
    engine: str
    """With its version, and what it computes in."""
    parameters: int
    layer_parameters: int
    """Parameters of the decoder layers alone."""


@dataclass(frozen=True)
class Workload:
    """S sequences of T tokens are read and continued by 1 + N tokens."""

    sequences: int
    tokens: int
    written: int

    @property
    def prefill_tokens(self) -> int:
        """Tokens read until the first one is written."""
        return self.sequences * self.tokens

    @property
    def decode_tokens(self) -> int:
        """Tokens written after the first ones."""
        return self.sequences * self.written


class Rival(Protocol):
    """A model that is loaded and ready to be measured."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        ...

    def run(self, work: Workload) -> dict[str, float]:
        """Seconds until the first token is there (`prefill`), and from then to the last one (`decode`)."""
        ...

    def cache_bytes_per_token(self, work: Workload) -> float:
        """Bytes of the KV cache for each token of each sequence."""
        ...


def is_gguf(name: str) -> bool:
    """Whether a model is a file for llama.cpp."""
    return name.endswith(GGUF)
