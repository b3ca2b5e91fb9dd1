"""Which experts of a mixture leave first, and the levels of the mixture from those of its experts.

An expert that leaves takes its row of the router with it: the tokens that took it take others. What that changes in the
layer's output is known exactly, without running it, from the router's logits and the inner products of what all experts
make of a token: with w the router's weights of before and w' those of after, |sum (w_e - w'_e) f_e|^2 = d^T G d.

Letters: N = tokens of a sample, E = experts, k = those that a token takes, I = columns of an expert as it is now, H = hidden
size, R = out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from darwinlm.database.hessians import CHECKS
from darwinlm.database.levels import Ladder
from darwinlm.database.obs import PrunedLevel
from darwinlm.models.experts import WideMLP
from darwinlm.models.stock import Block

SAMPLE = 2048
"""Tokens, evenly from all sequences, on whose outputs the order of experts is decided."""
AT_ONCE = 16
"""Of so many experts that are left, one leaves at a step of `by_change`."""


@dataclass
class Seen:
    """What the tokens of this rank show of a mixture."""

    inputs: list[Tensor] = field(default_factory=list)
    """Of each sequence (n, H): what some of its tokens bring to the router."""
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(E,): how many tokens took each expert."""


@contextmanager
def watched(block: Block, sequences: int) -> Iterator[Seen]:
    """Watch a mixture while its block runs.

    Args:
        block: with experts.
        sequences: of all ranks.
    """
    seen, mixture = Seen(), block.mixture
    seen.tokens = torch.zeros(mixture.count, dtype=torch.int64)

    def sample(_: object, arguments: tuple[Tensor]) -> None:
        count, length = min(-(-SAMPLE // sequences), arguments[0].shape[1]), arguments[0].shape[1]
        places = (torch.arange(count) + 1) * length // count - 1  # the first token is none like others
        seen.inputs += [one[places].cpu() for one in arguments[0]]

    def count(_: object, arguments: tuple[Tensor], found: tuple[Tensor, ...]) -> None:
        seen.tokens += found[2].flatten().bincount(minlength=mixture.count).cpu()

    with mixture.register_forward_pre_hook(sample), mixture.gate.register_forward_hook(count):  # type: ignore[arg-type]
        yield seen


class Sample:
    """Some tokens as all experts of a mixture see them.

    Args:
        mixture: the experts.
        inputs: (N, H).
    """

    def __init__(self, mixture: WideMLP, inputs: Tensor) -> None:
        self.mixture, self.logits = mixture, mixture.logits(inputs).float()
        parts = (mixture.outputs(part).float() for part in inputs.split(256))
        self.products = torch.cat([part @ part.mT for part in parts])
        """(N, E, E): G."""
        self.weights, self.chosen = mixture.taken(self.logits, torch.arange(mixture.count, device=inputs.device))

    def change(self, experts: Sequence[int]) -> float:
        """Mean squared change of the layer's output over tokens, where these experts alone stay."""
        weights, chosen = self.mixture.taken(self.logits, torch.tensor(experts, device=self.logits.device))
        return self._squared(torch.cat([self.weights, -weights], 1), torch.cat([self.chosen, chosen], 1))

    @property
    def power(self) -> float:
        """Mean square of the layer's output."""
        return self._squared(self.weights, self.chosen)

    def _squared(self, weights: Tensor, experts: Tensor) -> float:
        """Mean of d^T G d, with d the sums of `weights` (N, j) by `experts` (N, j)."""
        rows = self.products.gather(1, experts[:, :, None].expand(-1, -1, self.products.shape[2]))
        among = rows.gather(2, experts[:, None, :].expand(-1, experts.shape[1], -1)).double()
        return torch.einsum("ni,nij,nj->n", weights.double(), among, weights.double()).mean().item()


def by_norm(sample: Sample, least: int) -> list[int]:
    """Experts, most needed first, by the mean norm of what they put out, weighted by the router, over the tokens that take
    them: REAP (arXiv 2510.13999)."""
    norms = sample.products.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().gather(1, sample.chosen) * sample.weights
    total, count = (torch.zeros(sample.mixture.count, device=norms.device) for _ in range(2))
    total.index_add_(0, sample.chosen.flatten(), norms.flatten().float())
    count.index_add_(0, sample.chosen.flatten(), torch.ones_like(norms.flatten(), dtype=torch.float32))
    return (total / count.clamp_min(1)).argsort(descending=True, stable=True).tolist()


def by_change(sample: Sample, least: int) -> list[int]:
    """Experts, most needed first: those leave one after the other without which the layer's output changes least, until
    `least` are left."""
    stay, gone = list(range(sample.mixture.count)), []
    while len(stay) > least:
        changes = {expert: sample.change([other for other in stay if other != expert]) for expert in stay}
        leave = sorted(stay, key=changes.__getitem__)[: min(len(stay) - least, max(1, len(stay) // AT_ONCE))]
        stay = [expert for expert in stay if expert not in leave]
        gone += leave
    return stay + gone[::-1]


Ordering = Callable[[Sample, int], list[int]]
"""A sample and how many experts stay at least -> all of them, most needed first."""
ORDERS: Mapping[str, Ordering] = {"change": by_change, "norm": by_norm}


@dataclass(frozen=True)
class Order:
    """In which order the experts of a mixture leave."""

    experts: list[int]
    """Most needed first."""
    absent: Mapping[int, float]
    """Experts that stay -> mean squared change of the layer's output; with none, its power."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """By way of ordering: mean change on the tokens held back, relative to the output's power; empty where none was tried."""


@torch.no_grad()
def expert_order(
    mixture: WideMLP,
    inputs: list[Tensor],
    rungs: Sequence[tuple[int, int]],
    orders: Mapping[str, Ordering] = ORDERS,
) -> Order:
    """The order with the least change on tokens held back, at the counts of experts that levels have.

    Args:
        mixture: the experts.
        inputs: of each sequence (n, H), of all ranks; every CHECKS-th sequence is held back.
        rungs: (experts, width), the present ones first, (0, 0) last.
        orders: ways of ordering.
    """
    place = mixture.gate.weight
    held = [number % CHECKS == 1 for number in range(len(inputs))]
    parts = [torch.cat([one for one, is_held in zip(inputs, held) if is_held == part] or inputs) for part in (0, 1)]
    fit, check = (Sample(mixture, part.to(place)) for part in parts)
    counts = sorted({count for count, _ in rungs} - {0, mixture.count})
    found = {name: order(fit, counts[0]) for name, order in orders.items()} if counts else {}
    errors = {
        name: sum(check.change(order[:count]) for count in counts) / len(counts) / (check.power or 1.0)
        for name, order in found.items()
    }
    experts = found[min(errors, key=errors.__getitem__)] if found else list(range(mixture.count))
    changes = {count: fit.change(experts[:count]) for count in counts}
    return Order(experts, {mixture.count: 0.0, **changes, 0: fit.power}, errors)


def expert_levels(
    experts: Sequence[Sequence[PrunedLevel]], widths: Sequence[int], order: Order, ladder: Ladder
) -> list[PrunedLevel]:
    """The mixture at each open rung, as of one matrix whose columns are those of all experts, expert by expert.

    Args:
        experts: of each the levels at `widths`, the last one gone.
        widths: falling, the present one first, 0 last.
        order: in which experts leave.
        ladder: of the mixture.
    """
    columns, removed, found = widths[0], [], []
    there = torch.arange(ladder.columns)
    for count, width in ladder.rungs[ladder.present :]:
        level, stay = widths.index(width), sorted(order.experts[:count])
        chosen = [(expert, experts[expert][level]) for expert in stay]
        kept = torch.cat([there[:0], *(own.kept.cpu() + expert * columns for expert, own in chosen)])
        removed = [*removed, *there[~torch.isin(there, kept)].tolist()]
        there = kept
        weight = torch.cat([experts[0][-1].weight, *(own.weight for _, own in chosen)], 1)
        lost = order.absent[count] + sum(own.error for _, own in chosen)
        found.append(PrunedLevel(removed=removed, kept=kept, weight=weight, error=lost))
    return found
