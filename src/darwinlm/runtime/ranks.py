"""One process or many under torchrun: who am I, who else is there, and what do we exchange.

Without torchrun there is one rank and every exchange is the identity, so that callers need no second path.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.runtime.progress import log

T = TypeVar("T")
_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others: the work between two exchanges is of this order at most."""


def join() -> None:
    """Join the ranks that torchrun started; does nothing in a single process, or the second time.

    Raises:
        RequestError: something else set a part of torchrun's variables, as cluster schedulers do.
    """
    if not dist.is_initialized() and _launched() > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)


def _launched() -> int:
    """Processes that were started together, by torchrun's variables."""
    given = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    world = given["WORLD_SIZE"] or "1"
    if world == "1":
        alone = [name for name in ("LOCAL_RANK", "RANK") if os.environ.get(name)]
        if alone and not (given["RANK"] and given["MASTER_ADDR"] and given["MASTER_PORT"]):
            for name in alone:  # libraries would take this process for one of several
                del os.environ[name]
            log.warning("%s is set, but not what torchrun sets with it: this is one process.", " and ".join(alone))
        return 1
    wrong = [name for name, text in given.items() if not (text.isdecimal() or (name == "MASTER_ADDR" and text))]
    if not wrong and int(given["RANK"]) >= int(world):
        wrong = ["RANK"]
    if wrong:
        raise RequestError(
            f"WORLD_SIZE is '{world}', so this process would be one of several, but "
            + " and ".join(f"{name} is '{given[name]}'" if given[name] else f"{name} is not set" for name in wrong)
            + ". Unset WORLD_SIZE to work in one process, or start them by torchrun, which sets all of these."
        )
    return int(world)


def leave() -> None:
    """Leave the ranks again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end_together() -> None:
    """End this process where it is one of several and all of them are done; does nothing in a single process.

    Threads that the exchange of ranks leaves behind can abort a process that is taken down in Python's own order, which
    torchrun would tell as a failure of all. Everything is on disk by now.
    """
    if dist.is_initialized():
        barrier()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank() -> int:
    """This process among the ranks; 0 is the one that writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """How many ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that writes and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce(tensor: Tensor) -> Tensor:
    """Add up a tensor over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def reduce_to(tensor: Tensor, owner: int) -> Tensor | None:
    """The sum of a tensor over all ranks, in its memory, for one of them; None on the others, where it is spoilt."""
    if dist.is_initialized():
        dist.reduce(tensor, dst=owner)
    return tensor if rank() == owner else None


def all_gather(value: T) -> list[T]:
    """The value of every rank, in their order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The first rank's value, on every rank: for whatever is decided from floats.

    Sums may differ in their last bit from rank to rank (another GPU, another number of threads), so a decision that each
    took by itself could differ, too, and ranks that differ would wait for each other for ever. All ranks must call this.
    """
    if not dist.is_initialized():
        return value
    told: list[Any] = [value]
    dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    return told[0]


def shard(items: list[T]) -> list[T]:
    """This rank's share of a list that all ranks hold: every world_size-th item."""
    return items[rank() :: world_size()]


def interleave(shares: list[list[T]]) -> list[T]:
    """Put the shares of all ranks, each as `shard` dealt them, back into one list."""
    longest = max(map(len, shares), default=0)
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


def share_out(costs: Sequence[Sequence[int]]) -> list[int]:
    """A rank for every item, so that none has much more to do than the others; the same on all ranks.

    Items that are much cheaper on one rank choose first, the large before the small; each takes the rank that is done
    with it first.

    Args:
        costs: of every item on every rank.
    """

    def regret(item: int) -> tuple[int, int]:
        lowest, *others = sorted(costs[item])
        return (others[0] - lowest if others else 0), lowest

    done, share = [0] * len(costs[0]) if costs else [], [0] * len(costs)
    for item in sorted(range(len(costs)), key=regret, reverse=True):
        place = min(range(len(done)), key=lambda rank: (done[rank] + costs[item][rank], costs[item][rank]))
        share[item] = place
        done[place] += costs[item][place]
    return share
