"""A checkpoint on disk or on the hub: configuration, tokenizer, and tensors read one by one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from darwinlm.errors import DamagedFileError, RequestError, first_line
from darwinlm.models.family import Family, family_of
from darwinlm.models.shape import ModelShape

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_WORDS = ("*.json", "README.md", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
_COMPUTED = "rotary_emb.inv_freq"  # stored by old checkpoints, computed by every model
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


class ModelSource:
    """A checkpoint whose tensors are streamed from safetensors; nothing is loaded before it is asked for.

    Args:
        name: folder or hub id.
        weights: False where the configuration alone is needed (`plan`).

    Raises:
        RequestError: no such folder or hub repository, an unknown family, or weights that are not safetensors.
    """

    def __init__(self, name: str, *, weights: bool = True) -> None:
        self.name = name
        self.folder = _locate(name, weights)
        self.config = _read_config(self.folder, name)
        self.family: Family = family_of(self.config.model_type, name)
        self.shape = ModelShape.of(self.family, self.config)
        if weights:
            self.files: dict[str, Path] = _index(self.folder, name)
            self._check_complete()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer.

        Raises:
            RequestError: there is none, or it has ids that the model's embedding has not.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, config=self.config, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as fault:
            reason = first_line(fault)
            raise RequestError(
                f"'{self.name}' has no usable tokenizer ({reason}). Put its tokenizer files beside the weights."
            ) from fault
        if len(tokenizer) > self.shape.vocabulary:
            raise RequestError(
                f"The tokenizer of '{self.name}' does not fit the model: it has {len(tokenizer):,} tokens, but the embedding "
                f"only {self.shape.vocabulary:,} rows. Use the tokenizer that the model was trained with."
            )
        return tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and a sample of the weights: tells other models apart without reading all bytes."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted(set(self.files.values())):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for sample in range(_SAMPLES):
                    file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are stored in, by the final norm, which every model has."""
        return self.tensors(["model.norm.weight"])["model.norm.weight"].dtype

    def require_context(self, length: int, setting: str = "blocks.sequence_length") -> None:
        """Check that the model was made for sequences of this length, which a setting asks for.

        Raises:
            RequestError: it was made for shorter ones.
        """
        longest = getattr(self.config, "max_position_embeddings", None)
        if longest is not None and length > longest:
            raise RequestError(
                f"'{self.name}' reads at most {longest} tokens at a time, but {setting} is {length}. "
                f"Set {setting} to {longest} or less."
            )

    def _check_complete(self) -> None:
        """Every layer's matrices must be there, and be plain numbers."""
        if getattr(self.config, "quantization_config", None) is not None:
            raise RequestError(
                f"'{self.name}' is quantized. Prune the checkpoint that it was made from, and quantize afterwards."
            )
        needed = ["model.embed_tokens.weight", "model.norm.weight", *([] if self.shape.tied else ["lm_head.weight"])]
        for layer, widths in enumerate(self.shape.layers):
            attention = [f"self_attn.{part}_proj" for part in "qkvo"] if widths.heads else []
            mlp = [f"mlp.{part}_proj" for part in ("gate", "up", "down")] if widths.intermediate else []
            needed += [f"model.layers.{layer}.{matrix}.weight" for matrix in attention + mlp]
        if missing := [name for name in needed if name not in self.files]:
            raise DamagedFileError(
                f"'{self.name}' lacks {len(missing)} of its tensors, '{missing[0]}' first: a weight file is missing, or "
                "the weights do not belong to the config.json. Download or copy the checkpoint again."
            )

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors by their full names, each into memory of its own."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            if name not in self.files:
                raise DamagedFileError(
                    f"'{self.name}' has no tensor '{name}'; its weights do not belong to its config.json."
                )
            by_file.setdefault(self.files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, wanted in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_tensor(name).clone() for name in wanted}
            except (OSError, SafetensorError) as fault:
                raise DamagedFileError(
                    f"'{path}' is damaged: {fault}. Download or copy the checkpoint again."
                ) from fault
        return found

    def module(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below a prefix such as `model.layers.3.mlp.`, keyed by the rest of their names."""
        names = [name for name in self.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors(names).items()}

    def outline(self, prefix: str) -> dict[str, Tensor]:
        """As `module`, but on the meta device: shapes and dtypes without the numbers."""
        found: dict[str, Tensor] = {}
        for name, path in self.files.items():
            if name.startswith(prefix):
                with safe_open(path, framework="pt") as file:
                    shape = file.get_slice(name).get_shape()
                found[name.removeprefix(prefix)] = torch.empty(shape, dtype=self.dtype, device="meta")
        return found

    def embedding(self) -> Tensor:
        """(vocabulary, hidden): the token embedding."""
        return self.tensors(["model.embed_tokens.weight"])["model.embed_tokens.weight"]

    def head(self) -> Tensor:
        """(vocabulary, hidden): the language-model head; the embedding where they are tied."""
        return self.embedding() if self.shape.tied else self.tensors(["lm_head.weight"])["lm_head.weight"]


def _locate(name: str, weights: bool) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() and folder.name == "config.json" and not weights:
        return folder.parent
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise RequestError(
            f"There is no model folder '{name}'. Give a folder with a config.json, or a hub id such as Qwen/Qwen3-0.6B."
        )
    patterns = [*_WORDS, *(_WEIGHTS if weights else ())]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (RepositoryNotFoundError, HFValidationError) as fault:
        raise RequestError(
            f"'{name}' is neither a folder here nor a model on the hub that you can read. "
            "Check the spelling; for a gated model run `hf auth login` first."
        ) from fault
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as fault:
        raise RequestError(
            f"'{name}' is no folder here, and the hub cannot be reached to download it. Check the path or the connection."
        ) from fault


def _read_config(folder: Path, name: str) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise RequestError(f"'{name}' has no config.json; it is not a Hugging Face checkpoint.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        family = family_of(str(values.get("model_type")), name)
        if "per_layer_config" in values:  # one of ours: the same class, without the code that ships with it
            from darwinlm.models.heterogeneous import modeling

            values.pop("auto_map", None)
            return modeling(family).DarwinLMConfig(**values)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as fault:
        raise RequestError(f"The config.json of '{name}' cannot be read: {first_line(fault)}.") from fault


def _index(folder: Path, name: str) -> dict[str, Path]:
    """Tensor name -> file, from the headers of all safetensors files."""
    paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise RequestError(
            f"'{name}' holds no safetensors weights. DarwinLM reads no pickles; convert the checkpoint with "
            "`save_pretrained(..., safe_serialization=True)`."
        )
    index: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                index |= {tensor: path for tensor in file.keys() if not tensor.endswith(_COMPUTED)}  # noqa: SIM118
        except (OSError, SafetensorError) as fault:
            raise DamagedFileError(f"'{path}' is damaged: {fault}. Download or copy the checkpoint again.") from fault
    return index
