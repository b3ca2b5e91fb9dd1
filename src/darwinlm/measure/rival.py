"""What an engine must offer to be measured, and which engine a model belongs to.

Letters: S = sequences at once, T = tokens of each that are read, N = tokens that are written after the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from darwinlm.config import RunConfig
from darwinlm.errors import RequestError

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


def engine_of(name: str, config: RunConfig) -> str:
    """What runs a model.

    Raises:
        RequestError: a .gguf file is to run in something else than llama.cpp.
    """
    asked = config.bench.engine
    if is_gguf(name):
        if asked not in ("auto", "llama.cpp"):
            raise RequestError(
                f"'{name}' is a file for llama.cpp, and bench.engine is {asked}. Give the checkpoint's folder."
            )
        return "llama.cpp"
    return "transformers" if asked == "auto" else asked


def load_code(name: str, config: RunConfig) -> None:
    """Import all that a model's engine needs, so that memory taken from then on is the model's.

    Raises:
        RequestError: it is not installed, or does not compute such a model.
    """
    engine = engine_of(name, config)
    if engine == "llama.cpp":
        from darwinlm.measure.in_llamacpp import load_engine
    elif engine == "transformers":
        from darwinlm.measure.in_transformers import load_engine
    else:
        from darwinlm.measure.in_vllm import load_engine
    load_engine(name, config)


def open_rival(name: str, config: RunConfig) -> Rival:
    """Load a model into its engine.

    Args:
        name: folder, hub id, or path of a .gguf file.
        config: device, dtype, trust and `bench` count.

    Raises:
        RequestError: it cannot be loaded.
    """
    engine = engine_of(name, config)
    if engine == "llama.cpp":
        from darwinlm.measure.in_llamacpp import LlamaCppRival

        return LlamaCppRival(name, config)
    if engine == "transformers":
        from darwinlm.measure.in_transformers import TransformersRival

        return TransformersRival(name, config)
    from darwinlm.measure.in_vllm import VllmRival, VllmServerRival

    return (VllmRival if engine == "vllm" else VllmServerRival)(name, config)
