"""The teacher's likeliest tokens on disk: computed once for a text, read by every training on it.

manifest.json                  what they were made from, and the sha256 of every shard
FIRST-END.safetensors          blocks FIRST to END - 1 of the stream: ids (blocks, T) int32; log_p (blocks, T, K) float32 and tokens
                               (blocks, T, K) int32, what the teacher says comes next
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import TrainConfig
from darwinlm.data.stream import PackedStream
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.losses import Shortened
from darwinlm.recovery.objective import Known
from darwinlm.recovery.teacher import LiveTeacher
from darwinlm.runtime import ranks
from darwinlm.runtime.cache import ByteCache
from darwinlm.runtime.files import (
    read_json,
    read_tensors,
    require_room,
    sha256_of_file,
    write_json,
    write_tensors,
)
from darwinlm.runtime.progress import log, progress
from darwinlm.runtime.rundir import require_same

SHARD_BYTES = 1 << 28
"""Size of a shard, about."""
_CACHED_BYTES = 8 * SHARD_BYTES
_Shard = tuple[int, int]


@dataclass(frozen=True)
class Store:
    """A folder of shards.

    Args:
        folder: where they lie or are to lie.
        identity: what they depend on: text, teacher, settings.
        length: tokens in a block.
        top_k: tokens that are kept.
        blocks: that a training needs.
    """

    folder: Path
    identity: dict[str, Any]
    length: int
    top_k: int
    blocks: int

    @property
    def block_bytes(self) -> int:
        """On disk."""
        return self.length * (4 + 8 * self.top_k)

    @property
    def shards(self) -> list[_Shard]:
        """(first block, block after the last) of each; only the last one is smaller."""
        size = max(1, SHARD_BYTES // self.block_bytes)
        return [(first, min(first + size, self.blocks)) for first in range(0, self.blocks, size)]

    def shard_of(self, block: int) -> _Shard:
        """The shard that holds a block."""
        size = self.shards[0][1]
        return self.shards[block // size]

    def path(self, shard: _Shard) -> Path:
        """Its file."""
        return self.folder / f"{shard[0]}-{shard[1]}.safetensors"

    def finished(self) -> dict[str, str]:
        """{file name: sha256} of the shards that are there.

        Raises:
            RequestError: the folder holds something else, or logits that were made from something else.
        """
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            if (
                self.folder.exists()
                and any(self.folder.glob("[!.]*"))
                and not list(self.folder.glob("*-*.safetensors"))
            ):
                raise RequestError(
                    f"'{self.folder}' holds something that are no logits. Choose another train.teacher_logits."
                )
            return {}
        stored = read_json(manifest)
        remedy = "Choose another train.teacher_logits, or delete that folder."
        require_same(stored["identity"], self.identity, self.folder, "logits", remedy)
        return stored["shards"]

    def missing(self) -> list[_Shard]:
        """The shards that are still to be computed; room for them is checked."""
        known = self.finished()
        found = [shard for shard in self.shards if self.path(shard).name not in known or not self.path(shard).exists()]
        blocks = sum(end - first for first, end in found)
        require_room(self.folder, blocks * self.block_bytes, "The teacher's logits")
        return found

    def record(self, shards: dict[str, str]) -> None:
        """Add finished shards to the manifest."""
        write_json(self.folder / "manifest.json", {"identity": self.identity, "shards": {**self.finished(), **shards}})


def fill(store: Store, stream: PackedStream, teacher: LiveTeacher, device: torch.device, batch: int) -> None:
    """Compute the shards that are missing, shared out among the ranks; a killed one goes on.

    Args:
        store: where they go.
        stream: the text.
        teacher: the dense model, with `top_k` and `temperature`.
        device: where it computes.
        batch: blocks in a forward pass.
    """
    todo = ranks.all_gather(store.missing())[0]
    log.info("The teacher's logits: %d of %d shards to compute in '%s'.", len(todo), len(store.shards), store.folder)
    blocks, place = stream.blocks(), 0
    rounds = [todo[first : first + ranks.world_size()] for first in range(0, len(todo), ranks.world_size())]
    with progress("Teacher's logits", len(rounds)) as done:
        for shards in rounds:
            made: dict[str, str] = {}
            for shard in shards[ranks.rank() : ranks.rank() + 1]:
                rows = [tokens for tokens, _ in islice(blocks, shard[0] - place, shard[1] - place)]
                place = shard[1]
                if len(rows) < shard[1] - shard[0]:
                    raise stream.too_short((shard[0] + len(rows)) * store.length, store.blocks * store.length)
                made[store.path(shard).name] = _write(store.path(shard), torch.stack(rows), teacher, device, batch)
            everyone = ranks.all_gather(made)
            if ranks.is_first():
                store.record({name: digest for each in everyone for name, digest in each.items()})
            done("")
    ranks.barrier()


def _write(path: Path, tokens: Tensor, teacher: LiveTeacher, device: torch.device, batch: int) -> str:
    log_p, likeliest = [], []
    for rows in tokens.split(batch):
        final = teacher.known(rows.to(device), []).final
        if not isinstance(final, Shortened):
            raise TypeError("only a shortened teacher is stored")
        log_p.append(final.log_p.view(*rows.shape, -1).cpu())
        likeliest.append(final.tokens.view(*rows.shape, -1).int().cpu())
    write_tensors(path, {"ids": tokens.int(), "log_p": torch.cat(log_p), "tokens": torch.cat(likeliest)})
    return sha256_of_file(path)


class StoredTeacher:
    """The dense model's logits on disk.

    Args:
        store: finished.
        train: its temperature counts.
        device: where they are wanted.
    """

    def __init__(self, store: Store, train: TrainConfig, device: torch.device) -> None:
        self.store, self.train, self.device = store, train, device
        self.digests = store.finished()
        self.cache = ByteCache[dict[str, Tensor]](_CACHED_BYTES, lambda held: sum(t.nbytes for t in held.values()))

    def known(self, tokens: Tensor, numbers: Sequence[int]) -> Known:
        """What was kept of these blocks.

        Raises:
            DamagedFileError: a shard is missing or altered.
            RequestError: it was made from other text.
        """
        rows = [self._row(block, ids) for block, ids in zip(numbers, tokens.cpu(), strict=True)]
        log_p, likeliest = (torch.cat(parts).to(self.device) for parts in zip(*rows))
        return Known(Shortened(log_p, likeliest.long()), self.train.temperature)

    def _row(self, block: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        shard = self.store.shard_of(block)
        held = self.cache.get(shard, lambda: self._read(shard))
        row = block - shard[0]
        if not torch.equal(held["ids"][row], ids.int()):
            raise RequestError(
                f"'{self.store.folder}' holds the teacher's logits on other text than is trained on: the text behind --data has "
                "changed since. Choose another train.teacher_logits, or delete that folder."
            )
        return held["log_p"][row], held["tokens"][row]

    def _read(self, shard: _Shard) -> dict[str, Tensor]:
        path = self.store.path(shard)
        if not path.exists() or sha256_of_file(path) != self.digests.get(path.name):
            raise DamagedFileError(f"'{path}' is missing or altered. Delete it: the same command computes it again.")
        return read_tensors(path)[0]
