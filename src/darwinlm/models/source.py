"""A checkpoint on disk or on the hub: configuration, tokenizer, and tensors read one by one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.formats.rounding import rounded
from darwinlm.models import weights as stored_weights
from darwinlm.models.configuration import read_config, reason, try_out, unreadable
from darwinlm.models.experts import joined
from darwinlm.models.family import Family
from darwinlm.models.head import Head
from darwinlm.models.hub import fetch_weights, locate
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import EMBEDDING, HEAD, NORM, layer_of, layer_prefix
from darwinlm.models.tokens import open_tokenizer
from darwinlm.models.weights import Stored
from darwinlm.runtime.files import sha256_of, sha256_of_file
from darwinlm.runtime.progress import log


class ModelSource:
    """A checkpoint whose tensors are streamed from safetensors; nothing is loaded before it is asked for.

    Configuration, names, shapes and dtypes of all tensors are checked when it is opened, the configuration of a hub
    model before its weights are downloaded. What is read then gives the numbers of stock transformers.

    Args:
        name: folder or hub id.
        weights: False where the configuration alone is needed (`plan`).
        packed: take one whose matrices are packed whole numbers, too; its tensors are what an engine reads back of them.

    Raises:
        RequestError: no such folder or hub repository, an unknown family, an impossible configuration, or weights that
            are not safetensors or do not fit it.
    """

    def __init__(self, name: str, *, weights: bool = True, packed: bool = False) -> None:
        self.name = name
        self._outside: dict[str, Tensor] = {}
        """Of embedding and head, what takes the place of the stored numbers."""
        self.folder, on_hub = locate(name, config_alone=not weights)
        self.family: Family
        self.family, self.config = read_config(self.folder, name, packed=packed)
        try:
            self.shape = ModelShape.of(self.family, self.config)
        except RequestError:
            raise
        except Exception as fault:  # stock code makes its layers here, and has checks of its own
            raise unreadable(name, reason(fault)) from fault
        try_out(self.family, self.config, self.shape, name)
        if weights:
            if on_hub:
                fetch_weights(name, self.folder)
            self._stored: dict[str, Stored] = stored_weights.stored_tensors(
                self.folder, self.shape, name, packed=packed
            )
            self._settle_head()

    @property
    def files(self) -> dict[str, Path]:
        """Tensor name -> file, of all tensors that the model is made of."""
        return {name: stored.path for name, stored in self._stored.items()}

    @property
    def packed(self) -> bool:
        """Whether some of its tensors are packed whole numbers."""
        return any(stored.scales for stored in self._stored.values())

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer.

        Raises:
            RequestError: there is none, or it has ids that the model's embedding has not.
        """
        return open_tokenizer(self.folder, self.config, self.shape.vocabulary, self.name)

    @property
    def begin(self) -> int | None:
        """The token that every text must begin with; None where the family does without."""
        own = self.tokenizer.bos_token_id if self.family.begins else None
        return getattr(self.config, "bos_token_id", None) if own is None and self.family.begins else own

    def begun(self, blocks: Tensor) -> Tensor:
        """(blocks, T) token ids, each with the begin token in place of its first one where the family needs it."""
        if (begin := self.begin) is None:
            return blocks
        return torch.cat([torch.full_like(blocks[:, :1], begin), blocks[:, 1:]], dim=1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration, index, headers and a sample of every tensor: tells other models apart without
        reading all bytes."""
        return stored_weights.fingerprint(self.folder, sorted({stored.path for stored in self._stored.values()}))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the configuration and every byte of the weights: for results that are taken up again without a look."""
        files = [self.folder / "config.json", *sorted({stored.path for stored in self._stored.values()})]
        return sha256_of([sha256_of_file(path) for path in files])

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights are stored in; single tensors may have another."""
        return stored_weights.prevailing_dtype(self._stored.values())

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        if name in self._stored:
            return self._stored[name].torch_dtype
        layer = layer_of(name)
        if layer is None:
            raise KeyError(name)
        return self.layer(layer, meta=True)[name.removeprefix(layer_prefix(layer))].dtype

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

    def _settle_head(self) -> None:
        """A head stored beside a tied embedding: as transformers does, one that differs is the model's own."""
        if not self.shape.tied or HEAD not in self._stored:
            return
        if stored_weights.same_numbers(self._stored[EMBEDDING], self._stored[HEAD], (EMBEDDING, HEAD)):
            del self._stored[HEAD]
            return
        log.warning(
            "'%s' has a head that differs from its embedding, although its config.json says that they are tied. The stored "
            "head counts, as in transformers.",
            self.name,
        )
        self.config.tie_word_embeddings = False
        self.shape = replace(self.shape, tied=False)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors by their full names, each into memory of its own."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            if name not in self._stored:
                raise DamagedFileError(
                    f"'{self.name}' has no tensor '{name}'; its weights do not belong to its config.json."
                )
            by_file.setdefault(self._stored[name].path, []).append(name)
        found: dict[str, Tensor] = {}
        for path, wanted in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {name: self._stored[name].read(file, name) for name in wanted}
            except (OSError, SafetensorError) as fault:
                raise DamagedFileError(
                    f"'{path}' is damaged: {fault}. Download or copy the checkpoint again."
                ) from fault
        if broken := next(
            (name for name, tensor in found.items() if tensor.dtype.itemsize > 1 and not tensor.isfinite().all()), None
        ):
            raise DamagedFileError(
                f"'{self.name}' holds NaN or Inf in '{broken}', which are no numbers. Download or copy the checkpoint again, or "
                "train it anew with a lower learning rate."
            )
        return found

    def module(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below a prefix such as `model.layers.3.mlp.`, keyed by the rest of their names."""
        names = [name for name in self._stored if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors(names).items()}

    def layer(self, index: int, *, meta: bool = False) -> dict[str, Tensor]:
        """All tensors of a layer, keyed by their names within it; on the meta device shapes and dtypes alone."""
        prefix = layer_prefix(index)
        return joined(self._outline(prefix) if meta else self.module(prefix), self.family.experts)

    def _outline(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): torch.empty(stored.shape, dtype=stored.torch_dtype, device="meta")
            for name, stored in self._stored.items()
            if name.startswith(prefix)
        }

    def _one(self, name: str, meta: bool) -> Tensor:
        if not meta and name in self._outside:
            return self._outside[name]
        return self._outline(name)[""] if meta else self.tensors([name])[name]

    def embedded_in(self, format_: str) -> ModelSource:
        """The same checkpoint with embedding and head as a type of ggml leaves them; itself where the name is empty."""
        if not format_:
            return self
        twin, names = copy.copy(self), (EMBEDDING,) if self.shape.tied else (EMBEDDING, HEAD)
        twin._outside = {name: rounded(self._one(name, meta=False), format_) for name in names}
        return twin

    def outside(self, name: str) -> Tensor:
        """A tensor that belongs to no layer, by its full name."""
        return self._one(name, meta=False)

    def embedding(self, *, meta: bool = False) -> Tensor:
        """(vocabulary, hidden): the token embedding."""
        return self._one(EMBEDDING, meta)

    def final_norm(self, *, meta: bool = False) -> Tensor:
        """(hidden,): the weight of the norm between the last layer and the head."""
        return self._one(NORM, meta)

    def head(self, *, meta: bool = False) -> Head:
        """The language-model head; its matrix is the embedding where they are tied."""
        return Head(self._one(EMBEDDING if self.shape.tied else HEAD, meta), *self.family.head(self.config))
