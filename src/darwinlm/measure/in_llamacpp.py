"""A .gguf file, or a checkpoint made one, in llama.cpp through the package xllamacpp.

The times of one request are llama.cpp's own; several at once are those of its server under load.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from darwinlm.config import RunConfig
from darwinlm.errors import RequestError, first_line
from darwinlm.export.gguf.file import DTYPES, check_gguf, write_gguf
from darwinlm.measure.rival import Facts, Workload, is_gguf
from darwinlm.measure.under_load import posted, random_prompts, under_load
from darwinlm.models.source import ModelSource

_CACHE_VALUE_BYTES = 2
"""llama.cpp keeps keys and values in float16 unless it is told otherwise."""


class LlamaCppRival:
    """A model, loaded on the CPU with room for the longest sequences asked for.

    Args:
        name: path of a .gguf file, or of a checkpoint, which becomes a temporary one.
        config: seed, lengths, threads and type of the file count.
    """

    def __init__(self, name: str, config: RunConfig) -> None:
        self.seed = config.seed
        with TemporaryDirectory(prefix="darwinlm-", ignore_cleanup_errors=True) as scratch:
            path = name if is_gguf(name) else _converted(name, Path(scratch), config)
            self.file = read_gguf(path)
            self.server = _server(name, path, config)  # maps the file, whose name may then go
        self.facts = Facts(
            name,
            f"llama.cpp (xllamacpp {version('xllamacpp')}), {self.file.kind}",
            self.file.parameters,
            self.file.layer_parameters,
        )

    def run(self, work: Workload) -> dict[str, float]:
        """Complete prompts of random ids; nothing is taken over from an earlier prompt."""
        prompts = random_prompts(work, self.file.vocabulary, self.seed)
        asked = {"n_predict": work.written + 1, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        if work.sequences > 1:
            url = self.server.listening_address
            with posted(f"{url}/tokenize", {"content": "a"}) as answer:
                whole = json.load(answer)["tokens"][-1]  # parts of characters would be held back until they are whole
            return under_load(f"{url}/completion", prompts, {**asked, "logit_bias": [[whole, 1000]]})
        timings = self.server.handle_completions({"prompt": prompts[0], **asked})["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (work.tokens, work.written + 1):
            raise RuntimeError(f"llama.cpp read {timings['prompt_n']} and wrote {timings['predicted_n']} tokens")
        return {"prefill": timings["prompt_ms"] / 1e3, "decode": timings["predicted_ms"] / 1e3}

    def cache_bytes_per_token(self, work: Workload) -> float:
        """By the widths in the file's metadata."""
        return self.file.cache_values_per_token * _CACHE_VALUE_BYTES


def _converted(name: str, folder: Path, config: RunConfig) -> str:
    path = folder / "model.gguf"
    write_gguf(ModelSource(name), path, config.bench.gguf)
    return str(path)


def _server(name: str, path: str, config: RunConfig) -> Any:
    engine, bench = _package(), config.bench
    params = engine.CommonParams()
    params.model.path = path
    params.n_parallel = max(bench.batch_sizes)
    params.n_ctx = (max(bench.context_lengths) + bench.decode_tokens + 1) * params.n_parallel
    params.n_gpu_layers, params.verbosity = 0, 0
    threads = bench.threads or torch.get_num_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    try:
        return engine.Server(params)
    except RuntimeError as fault:
        reason = first_line(fault).rstrip(".")
        raise RequestError(f"llama.cpp cannot load '{name}': {reason}. Convert the checkpoint again.") from fault


@dataclass(frozen=True)
class GgufFile:
    """Sizes and widths of a .gguf file."""

    parameters: int
    layer_parameters: int
    vocabulary: int
    context: int
    """Longest sequence that it was made for, in tokens."""
    cache_values_per_token: int
    kind: str
    """Of most of its numbers, such as `Q4_K - Medium` or `F16`."""


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
            kind=_kind(reader),
        )
    except (ValueError, IndexError, KeyError, AttributeError) as fault:
        raise RequestError(f"'{name}' is no whole GGUF file ({fault}). Convert or copy it again.") from fault


def _kind(reader: Any) -> str:
    """The type that the file says it has; where it says none, or that types are mixed, that of most numbers."""
    from gguf import LlamaFileType

    told = reader.get_field("general.file_type")
    if told and (kind := LlamaFileType(told.contents())) != LlamaFileType.GUESSED:
        return kind.name.split("_", 1)[1].lower()
    numbers = Counter[str]()
    for tensor in reader.tensors:
        numbers[tensor.tensor_type.name.lower()] += int(tensor.n_elements)
    return numbers.most_common(1)[0][0]


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


def load_engine(name: str, config: RunConfig) -> None:
    """Check that llama.cpp is here, and computes a checkpoint.

    Raises:
        RequestError: it is not, or does not.
    """
    _package()
    if not is_gguf(name):
        if (dtype := config.bench.gguf) not in DTYPES:
            raise RequestError(f"bench.gguf is '{dtype}'; a GGUF file can be written as {', '.join(DTYPES)}.")
        check_gguf(ModelSource(name, weights=False), dtype)


def _package() -> Any:
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
