"""The stock shape: all layers that are kept have one width of attention and one of MLP, and whole layers may go.

Such a model is one of the family's stock class with fewer and narrower layers, which every engine loads. All layers spend
alike, so what a genome spends depends on its two widths and on how many layers it keeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

from darwinlm.database.levels import Ladder
from darwinlm.errors import RequestError
from darwinlm.genome import Genome, Space
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import KINDS
from darwinlm.models.stock_form import stock_fault
from darwinlm.models.widths import LayerWidths
from darwinlm.target.budget import Budget, Step, stepped

WidthsOf = Callable[[Ladder, int], LayerWidths]
"""The widths of a module at a level, in an otherwise absent layer."""
_UNEVEN = (
    "target.shape is stock, but the model's layers differ in width already, so their levels are not the same widths. Give the "
    "model that it was pruned from, or leave target.shape at free."
)
_QUERY_HEAD = (
    "target.shape is stock, but with database.attention_unit query_head the heads that leave decide how many KV heads a layer "
    "keeps, so layers would differ. Choose kv_group or balanced, or leave target.shape at free."
)
_LINEAR = (
    "target.shape is stock, but some of the model's layers have linear attention, which stays, so no whole layer can go. Leave "
    "target.shape at free."
)


@dataclass(frozen=True)
class StockBudget(Budget):
    """Limits on genomes of one shape.

    Genomes that its methods take are of the shape themselves: in every layer that is kept the modules of a kind are at
    one open level, and in the others all modules are at their last level.
    """

    layers: tuple[tuple[int, ...], ...]
    """The modules of every layer, one of each kind; modules of a kind spend alike."""
    open: tuple[tuple[int, ...], ...]
    """Levels that kept modules of each kind may have, rising."""

    def kept(self, genome: Genome) -> list[int]:
        """Layers that are there."""
        tops = self.tops()
        return [i for i, modules in enumerate(self.layers) if any(genome[m] < tops[m] for m in modules)]

    def levels(self, genome: Genome) -> tuple[int, ...]:
        """Of each kind in the layers that are kept; the last open ones where there are none."""
        kept = self.kept(genome)
        return tuple(genome[m] for m in self.layers[kept[0]]) if kept else tuple(levels[-1] for levels in self.open)

    def genome(self, levels: Sequence[int], kept: Sequence[int]) -> Genome:
        """That of these levels of each kind in these layers."""
        found = list(self.tops())
        for module, level in chain.from_iterable(zip(self.layers[i], levels) for i in kept):
            found[module] = level
        return tuple(found)

    def may_keep(self, layer: int, levels: Sequence[int]) -> bool:
        """Whether a layer's modules may have these levels."""
        return all(self.lowest[module] <= level for module, level in zip(self.layers[layer], levels))

    def shapes(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Levels of each kind, and the most layers at them that keep every limit: at least one."""
        for levels in product(*self.open):
            allowed = sum(self.may_keep(i, levels) for i in range(len(self.layers)))
            for limit in self.limits:
                each = sum(limit.costs[module][level] for module, level in zip(self.layers[0], levels))
                allowed = min(allowed, (limit.most - limit.base) // each if each else allowed)
            if allowed > 0:
                yield levels, allowed

    def within(self, genome: Genome) -> bool:
        """Whether a genome keeps a layer, and every limit."""
        return bool(self.kept(genome)) and super().within(genome)

    def smallest(self) -> Genome:
        """One layer at the last open levels."""
        levels = self.levels(self.tops())
        return self.genome(levels, [next(i for i in range(len(self.layers)) if self.may_keep(i, levels))])

    def at_share(self, share: float, place: int = 0) -> Genome:
        """Every layer that may stay at the first open levels by which the share is gone; 1: the smallest."""
        if share >= 1:
            return self.smallest()
        tops = self.tops()
        kept = [i for i, modules in enumerate(self.layers) if any(self.lowest[m] < tops[m] for m in modules)]
        asked = [self.lowest[m] + int(share * tops[m] + 1e-9) for m in self.layers[kept[0]]]
        levels = [next((l for l in levels if l >= a), levels[-1]) for levels, a in zip(self.open, asked)]
        return self.genome(levels, kept)

    def wider(self, genome: Genome) -> list[Step]:
        """Steps toward dense: all modules of a kind to their next open level, or a layer comes back."""
        return [*chain.from_iterable(self._wider(genome))]

    def narrower(self, genome: Genome) -> list[Step]:
        """Steps away from dense: all modules of a kind to their next open level, or a layer goes; one stays."""
        return [*chain.from_iterable(self._narrower(genome))]

    def switch(self, genome: Genome, rng: random.Random) -> Genome:
        """A step away from dense and one toward it; widths of a kind and layers are as likely to move, whatever their number."""
        for steps in (self._narrower, self._wider):
            if ways := [way for way in steps(genome) if way]:
                genome = stepped(genome, rng.choice(rng.choice(ways)))
        return genome

    def _wider(self, genome: Genome) -> list[list[Step]]:
        """By what moves: a kind, or a layer."""
        kept, levels, tops = self.kept(genome), self.levels(genome), self.tops()
        found: list[list[Step]] = []
        for kind, level in enumerate(levels):
            lower = [
                l for l in self.open[kind] if l < level and all(l >= self.lowest[self.layers[i][kind]] for i in kept)
            ]
            found.append([self._moved(kind, kept, level, lower[-1])] if kept and lower else [])
        gone = [i for i in range(len(self.layers)) if i not in kept and self.may_keep(i, levels)]
        found.append([tuple((m, tops[m], level) for m, level in zip(self.layers[i], levels)) for i in gone])
        return found

    def _narrower(self, genome: Genome) -> list[list[Step]]:
        """By what moves: a kind, or a layer."""
        kept, levels, tops = self.kept(genome), self.levels(genome), self.tops()
        found: list[list[Step]] = []
        for kind, level in enumerate(levels):
            higher = [l for l in self.open[kind] if l > level]
            found.append([self._moved(kind, kept, level, higher[0])] if kept and higher else [])
        going = kept if len(kept) > 1 else []
        found.append([tuple((m, level, tops[m]) for m, level in zip(self.layers[i], levels)) for i in going])
        return found

    def _moved(self, kind: int, kept: Sequence[int], old: int, new: int) -> Step:
        return tuple((self.layers[i][kind], old, new) for i in kept)


def layers_of(space: Space) -> tuple[tuple[int, ...], ...]:
    """The modules of every layer, in the order of their kinds."""
    layers = sorted({ladder.layer for ladder in space.ladders})
    return tuple(tuple(i for i, l in enumerate(space.ladders) if l.layer == layer) for layer in layers)


def stock_levels(shape: ModelShape, space: Space, widths: WidthsOf) -> tuple[tuple[int, ...], ...]:
    """Levels of each kind at which modules that are kept can be in the stock shape, rising.

    Args:
        shape: of the model that is pruned.
        space: its modules.
        widths: of modules at their levels.

    Raises:
        RequestError: levels of different layers are not of one width, or the stock class cannot hold such a model at all.
    """
    if any(widths.linear for widths in shape.layers):
        raise RequestError(_LINEAR)
    group = shape.original.heads // shape.original.kv_heads
    attentions = [space.ladders[i] for i in space.members("attention")]
    if group > 1 and any(l.between and l.group_size == shape.head_dim and not l.rounds for l in attentions):
        raise RequestError(_QUERY_HEAD)
    found = []
    for kind in KINDS:
        ladders = [space.ladders[i] for i in space.members(kind)]
        tables = {tuple(widths(ladder, level) for level in range(ladder.present, ladder.top)) for ladder in ladders}
        if len({ladder.present for ladder in ladders}) > 1 or len(tables) != 1 or any(w.padding for w in shape.layers):
            raise RequestError(_UNEVEN)
        found.append(range(ladders[0].present, ladders[0].top))
    dense = shape.layers[0]
    if fault := stock_fault(shape, dense):
        raise RequestError(f"target.shape is stock, which this model cannot be: {fault}. Leave it at free.")
    mlp = {"intermediate": dense.intermediate, "experts": dense.experts}
    heads = [level for level in found[0] if not stock_fault(shape, replace(widths(attentions[0], level), **mlp))]
    return tuple(heads), tuple(found[1])
