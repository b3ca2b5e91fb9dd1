"""A checkpoint as one GGUF file, streamed: the numbers of one layer at a time are in memory."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.export.card import told_by
from darwinlm.export.formats import MIXED, formats_of, searched_for_vllm, stored_as
from darwinlm.export.gguf.mixture import MIXTURES, type_of
from darwinlm.export.gguf.vocabulary import Vocabulary, vocabulary
from darwinlm.formats.llama_cpp import library
from darwinlm.formats.rounding import packed, require_formats
from darwinlm.formats.types import SMALLER_BLOCKS, fitting, ggml_type, stored_bytes
from darwinlm.models.llama_cpp import ROUTER, architecture, llama_cpp_faults, module_of, outlines, rope, tensors
from darwinlm.models.source import ModelSource
from darwinlm.models.stubs import stubbed
from darwinlm.runtime.files import require_room, written_whole

DTYPES = ("f32", "f16", "bf16", "q8_0", *MIXTURES)


def check_gguf(source: ModelSource, dtype: str = "", *, free: bool = False) -> Vocabulary:
    """Check that llama.cpp computes a checkpoint as transformers does, before anything is written.

    Args:
        source: a checkpoint, pruned or dense.
        dtype: one of `DTYPES`, `MIXED`, or empty.
        free: it is for models that are cut from it and whose layers differ.

    Returns:
        Its tokenizer in llama.cpp's terms.

    Raises:
        RequestError: it would not, or a package is missing; names everything that stands in the way.
    """
    if dtype in MIXTURES:
        library()
    if dtype == MIXED:
        require_formats({*formats_of(source)["modules"].values(), *filter(None, [formats_of(source)["embedding"]])})
    if importlib.util.find_spec("gguf") is None:
        raise RequestError("GGUF files need the package gguf. Install it with: pip install 'darwinlm[gguf]'")
    found = llama_cpp_faults(source, free=free)
    if dtype in MIXTURES and source.family.experts:
        found.append(
            f"has experts, which only llama.cpp's own llama-quantize makes {dtype}: write f16, and run that on it"
        )
    if found:
        raise RequestError(*(f"'{source.name}' cannot be written as GGUF: it {fault}." for fault in found))
    return vocabulary(source)


def default_dtype(source: ModelSource) -> str:
    """The dtype that a checkpoint is stored in, as GGUF names it; `MIXED` where modules have types of ggml of their own."""
    own = formats_of(source)
    return MIXED if own and not searched_for_vllm(source) else own.get("stored", stored_as(source))


def header_bytes(source: ModelSource) -> int:
    """Bytes of a file of this model, or of one that is cut from it, before the numbers; they lie within a kilobyte.

    Raises:
        RequestError: llama.cpp would not compute what such a model computes.
    """
    words, graph = check_gguf(source, free=True), architecture(source, free=True)
    shapes = outlines(source, graph)
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(path, graph)
        try:
            _describe(
                writer,
                source,
                words,
                "f16",
                shapes,
                {name: _type(source, name, shapes[name], "f16") for name in shapes},
            )
        finally:
            writer.close()
        return path.stat().st_size


def write_gguf(
    source: ModelSource, path: Path, dtype: str, importance: Mapping[str, np.ndarray] | None = None
) -> list[str]:
    """Write a checkpoint as a GGUF file, whole or not at all.

    Args:
        source: a checkpoint, pruned or dense.
        path: the file; one that lies there is replaced.
        dtype: one of `DTYPES`, for matrices, or `MIXED`; norms and biases are float32 always.
        importance: of the columns of matrices, by llama.cpp's names; K-quants alone read it.

    Returns:
        What the reader should know of it: where llama.cpp cuts rare text otherwise, matrices kept in another dtype.

    Raises:
        RequestError: llama.cpp would not compute what the checkpoint computes, or the weights do not fit the dtype or the
            disk.
    """
    words, graph = check_gguf(source, dtype), architecture(source)
    import gguf

    shapes = outlines(source, graph)
    types = {name: _type(source, name, shape, dtype) for name, shape in shapes.items()}
    require_room(path.parent, sum(stored_bytes(shape, types[name]) for name, shape in shapes.items()), "This GGUF file")
    with written_whole(path) as partial:
        writer = gguf.GGUFWriter(partial, graph)
        try:
            _describe(writer, source, words, dtype, shapes, types)
            _write_tensors(writer, tensors(source, graph), types, importance or {}, source.name)
        finally:
            writer.close()
    return [*words.cut.notes, *_unusual(types, dtype)]


def _unusual(types: Mapping[str, str], dtype: str) -> list[str]:
    """Matrices whose rows do not split into the blocks of their type."""
    odd = [name for name, type_ in types.items() if type_ == "f16" and dtype in ("q8_0", *MIXTURES)]
    small = [name for name, type_ in types.items() if type_ in SMALLER_BLOCKS.values() and dtype in MIXTURES]
    told = [(odd, "are f16", 32)] if odd else []
    told += [(small, "have a type of smaller blocks", 256)] if small else []
    return [
        f"{len(names)} matrices {what}: their rows are no multiple of {n} ({names[0]} first)."
        for names, what, n in told
    ]


def _describe(
    writer: Any,
    source: ModelSource,
    words: Vocabulary,
    dtype: str,
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
) -> None:
    """All that comes before the numbers."""
    _name(writer, source)
    _metadata(writer, source, dtype)
    _tokenizer(writer, words)
    for name, shape in shapes.items():
        size = stored_bytes(shape, types[name])
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, ggml_type(types[name]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write_tensors(
    writer: Any,
    tensors: Iterator[tuple[str, Tensor]],
    types: Mapping[str, str],
    importance: Mapping[str, np.ndarray],
    model: str,
) -> None:
    """Stream the tensors that were announced; a name that comes out of turn would land in another's place."""
    for expected, (name, tensor) in zip(types, tensors, strict=True):
        if name != expected:
            raise RuntimeError(f"tensor {name} came where {expected} was announced")
        values = packed(tensor.numpy(), types[name], importance.get(name))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RequestError(f"'{model}' has weights beyond the range of f16. Choose --dtype bf16 or f32.")
        writer.write_tensor_data(values)


def _type(source: ModelSource, name: str, shape: tuple[int, ...], dtype: str) -> str:
    """The type of one tensor: vectors and routers stay float32, rows that do not split into blocks float16."""
    if len(shape) == 1 or name.endswith(ROUTER):
        return "f32"
    if dtype in MIXTURES:
        return type_of(name, shape[-1], len(source.shape.layers), dtype, tied=source.shape.tied)
    if dtype == MIXED:
        held, place = formats_of(source), module_of(name)
        format_ = held["embedding"]
        if place:
            there = source.shape.layers[place[0]].has(place[1])
            format_ = held["modules"].get(source.family.module(*place)) if there else held["stubs"]
        dtype = format_ or held["stored"]
    return fitting(dtype, shape[-1])


def name_of(source: ModelSource) -> str:
    """What programs list the model by."""
    base, folder = _base(source)[1], source.folder.resolve()
    run = folder.parent.name if folder.name == "model" else folder.name
    return f"{base}-pruned" if base else run


def file_name(source: ModelSource, dtype: str) -> str:
    """Name, parameters and type, such as `SmolLM2-135M-pruned-82M-Q4_K_M.gguf`."""
    import gguf

    name = re.sub(r"[^\w.-]+", "-", name_of(source)).strip("-.") or "model"
    return f"{name}-{gguf.size_label(source.shape.parameters, 0, 0, 0)}-{dtype.upper()}.gguf"


def _base(source: ModelSource) -> tuple[str, str]:
    """Owner and name of the model on the hub that a checkpoint goes back to; empty where there is none."""
    owner, _, base = str(told_by(source).get("base_model", "")).rpartition("/")
    return owner, base


def _name(writer: Any, source: ModelSource) -> None:
    """Name, size, licence, and the model on the hub."""
    import gguf

    owner, base = _base(source)
    writer.add_name(name_of(source))
    writer.add_size_label(gguf.size_label(source.shape.parameters, 0, 0, 0))
    for key, value in told_by(source).items():
        if key.startswith("license") and isinstance(value, str) and value != "unknown":
            getattr(writer, f"add_{key}")(value)
    if base:
        writer.add_finetune("pruned")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        writer.add_base_model_organization(0, owner)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{owner}/{base}")


def _metadata(writer: Any, source: ModelSource, dtype: str) -> None:
    """Widths of every layer, and all that the graph computes with."""
    import gguf

    config, shape = source.config, stubbed(source.shape)
    named = {"f32": "ALL_F32", MIXED: "GUESSED"}.get(dtype, f"MOSTLY_{dtype.upper()}")
    writer.add_file_type(gguf.LlamaFileType[named])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(shape.layers))
    writer.add_feed_forward_length([widths.intermediate for widths in shape.layers])
    writer.add_head_count([widths.heads for widths in shape.layers])
    writer.add_head_count_kv([widths.kv_heads for widths in shape.layers])
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope(source.family, config, shape).base)
    if source.family.experts:
        writer.add_expert_count(shape.layers[0].experts)
        writer.add_expert_used_count(shape.chosen)
        writer.add_expert_feed_forward_length(shape.layers[0].intermediate)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tokenizer(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.cut.model)
    writer.add_tokenizer_pre(words.cut.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.cut.merges is not None:
        writer.add_token_merges(words.cut.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    for name, number in words.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    writer.add_add_space_prefix(words.cut.add_space_prefix)
    if words.chat_template:
        writer.add_chat_template(words.chat_template)
