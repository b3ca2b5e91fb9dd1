"""A .gguf file in llama.cpp, through the package xllamacpp; times are llama.cpp's own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from darwinlm.config import RunConfig
from darwinlm.errors import RequestError, first_line
from darwinlm.measure.rival import Facts, Workload
from darwinlm.runtime.seeds import python_random

_CACHE_VALUE_BYTES = 2
"""llama.cpp keeps keys and values in float16 unless it is told otherwise."""


class LlamaCppRival:
    """A .gguf file, loaded on the CPU with room for the longest sequence asked for.

    Args:
        name: path of the file.
        config: seed, lengths and threads count.
    """

    def __init__(self, name: str, config: RunConfig) -> None:
        self.file, self.seed = read_gguf(name), config.seed
        engine, bench = load_engine(), config.bench
        params = engine.CommonParams()
        params.model.path = name
        params.n_ctx = max(bench.context_lengths) + bench.decode_tokens + 1
        params.n_parallel, params.n_gpu_layers, params.verbosity = 1, 0, 0
        threads = bench.threads or torch.get_num_threads()
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        try:
            self.server = engine.Server(params)
        except RuntimeError as fault:
            reason = first_line(fault).rstrip(".")
            raise RequestError(f"llama.cpp cannot load '{name}': {reason}. Convert the checkpoint again.") from fault
        self.facts = Facts(
            name, f"llama.cpp (xllamacpp {version('xllamacpp')})", self.file.parameters, self.file.layer_parameters
        )

    def run(self, work: Workload) -> dict[str, float]:
        """Complete a prompt of random ids; nothing is taken over from an earlier prompt."""
        rng = python_random(self.seed, "bench", work.tokens)
        request = {
            "prompt": [rng.randrange(self.file.vocabulary) for _ in range(work.tokens)],
            "n_predict": work.written + 1,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        timings = self.server.handle_completions(request)["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (work.tokens, work.written + 1):
            raise RuntimeError(f"llama.cpp read {timings['prompt_n']} and wrote {timings['predicted_n']} tokens")
        return {"prefill": timings["prompt_ms"] / 1e3, "decode": timings["predicted_ms"] / 1e3}

    def cache_bytes_per_token(self, work: Workload) -> float:
        """By the widths in the file's metadata."""
        return self.file.cache_values_per_token * _CACHE_VALUE_BYTES


@dataclass(frozen=True)
class GgufFile:
    """Sizes and widths of a .gguf file."""

    parameters: int
    layer_parameters: int
    vocabulary: int
    context: int
    """Longest sequence that it was made for, in tokens."""
    cache_values_per_token: int


def read_gguf(name: str) -> GgufFile:
    """What the header of a .gguf file says.

    Raises:
        RequestError: there is no such file, it is no GGUF, or the package that reads it is missing.
    """
    if not Path(name).is_file():
        raise RequestError(f"There is no file '{name}'. Give the path of a .gguf file, or a checkpoint folder.")
    try:
        from gguf import GGUFReader
    except ImportError as fault:
        raise _missing("gguf") from fault
    try:
        reader = GGUFReader(name)
        sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors if "rope" not in tensor.name}
        return GgufFile(
            parameters=sum(sizes.values()),
            layer_parameters=sum(size for tensor, size in sizes.items() if tensor.startswith("blk.")),
            vocabulary=sizes["token_embd.weight"] // _field(reader, "embedding_length"),
            context=_field(reader, "context_length"),
            cache_values_per_token=_cache_values(reader),
        )
    except (ValueError, IndexError, KeyError, AttributeError) as fault:
        raise RequestError(f"'{name}' is no whole GGUF file ({fault}). Convert or copy it again.") from fault


def _cache_values(reader: Any) -> int:
    """Keys and values of all layers for one token; head counts are one number or one a layer."""
    layers, heads, kv_heads = (
        _field(reader, key) for key in ("block_count", "attention.head_count", "attention.head_count_kv")
    )
    usual = _field(reader, "embedding_length") // (heads[0] if isinstance(heads, list) else heads)
    widths = [_field(reader, f"attention.{kind}_length", usual) for kind in ("key", "value")]
    return (sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * layers) * sum(widths)


def _field(reader: Any, key: str, default: Any = None) -> Any:
    field = reader.get_field(f"{reader.get_field('general.architecture').contents()}.{key}")
    if field is None and default is None:
        raise KeyError(key)
    return default if field is None else field.contents()


def load_engine() -> Any:
    """The package xllamacpp.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import xllamacpp
    except ImportError as fault:
        raise _missing("xllamacpp") from fault
    return xllamacpp


def _missing(package: str) -> RequestError:
    return RequestError(
        f"A .gguf file needs the package {package}, which is not installed. Run `pip install {package}`, "
        "or give checkpoint folders to measure in transformers."
    )
