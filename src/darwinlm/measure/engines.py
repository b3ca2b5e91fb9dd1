"""Which engine runs a model, and how it is opened there."""

from __future__ import annotations

from darwinlm.config import RunConfig
from darwinlm.errors import RequestError
from darwinlm.measure.rival import Rival, is_gguf


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
        config: device, dtype and `bench` count.

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
