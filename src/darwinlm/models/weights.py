"""The weight files of a checkpoint, known from their headers: which tensor lies where, and whether all fit the model."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.formats.packing import read_back, unpack
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import EMBEDDING, HEAD, NORM, layer_prefix
from darwinlm.runtime.progress import warn_once

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MULTIMODAL = "language_model."
_COMPUTED = "rotary_emb.inv_freq"  # stored by old checkpoints, computed by every model
_WINDOW, _WINDOWS = 4096, 4  # bytes and places of a tensor that a fingerprint reads
_AGAIN = "Download or copy the checkpoint again."
_NUMBERS, _SCALES, _SHAPE = "_packed", "_scale", "_shape"  # that a packed matrix has behind its name
_ROWS = 4096  # of embedding and head that are compared at a time


@dataclass(frozen=True)
class Stored:
    """One tensor on disk."""

    path: Path
    dtype: str
    """As safetensors names it, such as BF16."""
    shape: tuple[int, ...]
    scales: Path | None = None
    """Where the scales lie, of a matrix that is packed whole numbers; what is said of it is then what they stand for."""

    def read(self, file: Any, name: str) -> Tensor:
        """The numbers, in memory of their own, out of its opened file."""
        if self.scales is None:
            return file.get_tensor(name).clone()
        words = file.get_tensor(name + _NUMBERS)
        with safe_open(self.scales, framework="pt") as other:
            scales = other.get_tensor(name + _SCALES)
        return read_back(unpack(words, _bits(words.shape, self.shape)), scales).to(self.torch_dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of its numbers."""
        return _DTYPES[self.dtype]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files that hold a checkpoint's weights: `model.safetensors`, else those that the index names.

    Raises:
        RequestError: there are none, some are missing, or one lies outside the folder.
    """
    if (folder / "adapter_config.json").is_file():
        raise RequestError(
            f"'{name}' holds an adapter beside its weights (adapter_config.json). Merge it into the model, or remove it."
        )
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = index_files(folder, name)
    elif loose := sorted(path.name for path in folder.glob("model*.safetensors")):
        raise RequestError(
            f"'{name}' holds {loose[0]}, but neither {SINGLE} nor {INDEX}, which says what belongs together. {_AGAIN}"
        )
    else:
        raise RequestError(
            f"'{name}' holds no safetensors weights. DarwinLM reads no pickles; convert the checkpoint with "
            "transformers' `save_pretrained`."
        )
    paths = [folder / file for file in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DamagedFileError(
            f"'{name}' lacks {len(missing)} of the weight files that its {INDEX} names: {_some(missing)}. {_AGAIN}"
        )
    if outside := [path.name for path in paths if not _lies_in(path, folder)]:
        raise RequestError(
            f"'{name}' has a weight file that is a link out of its folder: {_some(outside)}. Put the file itself there, or "
            "give the folder that it lies in."
        )
    if stale := sorted(path.name for path in folder.glob("model*.safetensors") if path.name not in names):
        warn_once(
            f"'{name}': left out {_some(stale)}, which do not belong to {'its index' if names != [SINGLE] else SINGLE}."
        )
    return paths


def index_files(folder: Path, name: str) -> list[str]:
    """Names of the files that the index gives tensors to.

    Raises:
        RequestError: it cannot be read, or names something outside the folder.
    """
    files = set(_weight_map(folder, name).values())
    if wrong := [file for file in files if not _is_plain(file)]:
        raise RequestError(
            f"The {INDEX} of '{name}' names {wrong[0]!r:.80}, which is no safetensors file in its folder. {_AGAIN}"
        )
    return sorted(files)


def stored_tensors(folder: Path, shape: ModelShape, name: str, *, packed: bool = False) -> dict[str, Stored]:
    """What a model of this shape is made of; a head beside a tied embedding is among it where one is stored, and matrices of
    packed whole numbers where they are asked for.

    Raises:
        RequestError: tensors are missing, of another shape or kind, twice there, or there is one that the model has no
            place for although it would change its numbers.
    """
    held, twice = _headers(weight_files(folder, name))
    needed = shape.outlines()
    held = _with_packed(held, needed) if packed else held
    optional = {HEAD: (shape.vocabulary, shape.hidden)} if shape.tied else {}
    known = needed | {tensor: sizes for tensor, sizes in optional.items() if tensor in held}
    if missing := [tensor for tensor in needed if tensor not in held]:
        if any(f"model.{_MULTIMODAL}{tensor.removeprefix('model.')}" in held for tensor in missing):
            raise RequestError(
                f"'{name}' is the text model of a multimodal one, its tensors still named as there (model.{_MULTIMODAL}*). Load "
                "it by AutoModelForCausalLM.from_pretrained, and save it by save_pretrained(FOLDER, save_original_format=False)."
            )
        raise DamagedFileError(
            f"'{name}' lacks {len(missing)} of its tensors, {_some(missing)}: a weight file is missing, or the weights do not "
            f"belong to the config.json. {_AGAIN}"
        )
    found = {tensor: stored for tensor, stored in held.items() if tensor in known}
    if other := [tensor for tensor, stored in found.items() if stored.shape != known[tensor]]:
        first = other[0]
        raise RequestError(
            f"'{name}' has {len(other)} tensors that are not as its config.json says, '{first}' first: "
            f"{list(found[first].shape)} in the file, {list(known[first])} by config.json. If another tool pruned it, "
            "give `darwinlm import` the model with zeros in place of what went; else use the config.json that belongs to it."
        )
    if strange := [tensor for tensor, stored in found.items() if stored.dtype not in _DTYPES]:
        raise RequestError(
            f"'{name}' stores '{strange[0]}' as {found[strange[0]].dtype}, so it is quantized. Prune the checkpoint that it was "
            "made from, and quantize afterwards."
        )
    _check_one_place(found, twice, folder, name)
    _leave_out(held, found, shape, name)
    return found


def _check_one_place(found: Mapping[str, Stored], twice: set[str], folder: Path, name: str) -> None:
    """Files and index must agree on where a tensor lies."""
    if doubled := sorted(twice & set(found)):
        raise DamagedFileError(f"'{name}' holds {len(doubled)} tensors in two of its files, {_some(doubled)}. {_AGAIN}")
    index = {} if (folder / SINGLE).is_file() else _weight_map(folder, name)
    for tensor, stored in found.items():
        if index.get(tensor, stored.path.name) != stored.path.name:
            raise DamagedFileError(
                f"The {INDEX} of '{name}' says that '{tensor}' lies in {index[tensor]}, but it lies in {stored.path.name}. "
                f"{_AGAIN}"
            )


def _leave_out(held: Mapping[str, Stored], found: Mapping[str, Stored], shape: ModelShape, name: str) -> None:
    """Say what is left out, as transformers leaves it out; refuse what the model would be another without."""
    surplus = [tensor for tensor in held if tensor not in found and not tensor.endswith(_COMPUTED)]
    if other := [tensor for tensor in surplus if f"model.{tensor}" in found or tensor.removeprefix("model.") in found]:
        raise RequestError(
            f"'{name}' holds {len(other)} tensors under two names, {_some(other)}: transformers takes either for the other. "
            "Remove those that are not the model's."
        )
    around = (name.removesuffix("weight") for name in (EMBEDDING, NORM, HEAD))
    parts = (*around, *map(layer_prefix, range(len(shape.layers))))
    inside = sorted(
        tensor for tensor in surplus if tensor.startswith(parts) and not _is_zero_bias(tensor, held[tensor])
    )
    if inside:
        raise RequestError(
            f"'{name}' has {len(inside)} tensors that its configuration has no place for, {_some(inside)}: without them it "
            f"would be another model. {_remedy(inside, shape)}"
        )
    if surplus:
        warn_once(f"'{name}': left out {len(surplus)} tensors that are not of the language model, {_some(surplus)}.")


def _remedy(surplus: list[str], shape: ModelShape) -> str:
    settings = [
        setting
        for site, setting in zip(shape.family.sites, ("attention_bias", "mlp_bias"))
        if hasattr(shape.stock.config, setting)
        and any(f".{site.module}." in n and n.endswith(".bias") for n in surplus)
    ]
    if settings:
        return f"Set {' and '.join(settings)} to true in config.json if they belong to it."
    return "Use the config.json that belongs to the weights; merge adapters and undo quantization first."


def _is_zero_bias(tensor: str, stored: Stored) -> bool:
    if not tensor.endswith(".bias") or stored.dtype not in _DTYPES:
        return False
    with safe_open(stored.path, framework="pt") as file:
        return not file.get_tensor(tensor).any()


def _headers(paths: Iterable[Path]) -> tuple[dict[str, Stored], set[str]]:
    """Tensor name -> where it lies; and the names that lie in two files."""
    held: dict[str, Stored] = {}
    twice: set[str] = set()
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118
                    part = file.get_slice(tensor)
                    if tensor in held:
                        twice.add(tensor)
                    held[tensor] = Stored(path, str(part.get_dtype()), tuple(part.get_shape()))
        except (OSError, SafetensorError) as fault:
            if not os.access(path, os.R_OK):
                raise RequestError(f"'{path}' may not be read by this user.") from fault
            raise DamagedFileError(f"'{path}' is damaged: {fault}. {_AGAIN}") from fault
    return held, twice


def _with_packed(held: dict[str, Stored], needed: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    """With packed matrices as what they stand for, in place of their parts."""
    parts = {name: tuple(held.get(name + end) for end in (_NUMBERS, _SCALES)) for name in needed if name not in held}
    found: dict[str, Stored] = {}
    for name, (words, scales) in parts.items():
        if words and scales and words.dtype == "I32" and scales.dtype in _DTYPES and _bits(words.shape, needed[name]):
            found[name] = Stored(words.path, "BF16", needed[name], scales.path)
    gone = {name + end for name in found for end in (_NUMBERS, _SCALES, _SHAPE)}
    return {name: stored for name, stored in held.items() if name not in gone} | found


def _bits(words: Sequence[int], numbers: Sequence[int]) -> int:
    """Of each number of a packed matrix, from its shape and the one of its words; 0 where they do not belong together."""
    bits, rest = divmod(32 * words[-1], numbers[-1])
    return bits if bits in (4, 8) and not rest and words[0] == numbers[0] else 0


def same_numbers(one: Stored, other: Stored, names: tuple[str, str]) -> bool:
    """Whether two stored matrices hold the same numbers, read in parts."""
    with safe_open(one.path, framework="pt") as first, safe_open(other.path, framework="pt") as second:
        a, b = first.get_slice(names[0]), second.get_slice(names[1])
        return all(
            torch.equal(a[row : row + _ROWS].float(), b[row : row + _ROWS].float())
            for row in range(0, one.shape[0], _ROWS)
        )


def prevailing_dtype(stored: Iterable[Stored]) -> torch.dtype:
    """The dtype of most bytes."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in stored:
        counts[tensor.torch_dtype] += tensor.bytes
    return counts.most_common(1)[0][0]


def fingerprint(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 over configuration, index, the headers of the weight files and a sample of every tensor."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if (folder / INDEX).is_file():
        digest.update((folder / INDEX).read_bytes())
    for path in paths:
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            length = file.read(8)
            header = file.read(int.from_bytes(length, "little"))
            digest.update(length + header)
            for tensor, facts in json.loads(header).items():
                if tensor != "__metadata__":
                    start, end = (8 + len(header) + offset for offset in facts["data_offsets"])
                    for place in sorted({max(0, end - start - _WINDOW) * i // (_WINDOWS - 1) for i in range(_WINDOWS)}):
                        file.seek(start + place)
                        digest.update(file.read(min(_WINDOW, end - start - place)))
    return digest.hexdigest()


def _weight_map(folder: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        found = values["weight_map"]
        if not isinstance(found, dict) or not found:
            raise ValueError("its weight_map names no tensors")
        if not isinstance(values.get("metadata"), dict):
            raise ValueError("it has no metadata, which transformers asks for")
        if wrong := [file for file in found.values() if not isinstance(file, str)]:
            raise ValueError(f"its weight_map has {wrong[0]!r:.40} in place of a file")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise DamagedFileError(f"The {INDEX} of '{name}' cannot be read: {fault}. {_AGAIN}") from fault
    return found


def _is_plain(file: str) -> bool:
    return file.endswith(".safetensors") and file.isprintable() and not any(mark in file for mark in ("/", "\\", ".."))


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file is in the folder, or in the blobs of the hub cache whose snapshot the folder is."""
    real, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs"
    return real.parent == root or (root.parent.name == "snapshots" and real.is_relative_to(blobs))


def _some(names: list[str]) -> str:
    """The first few of a list, in words."""
    shown = ", ".join(f"{name!r:.120}" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
