"""The ladder of every module: how many groups of columns are gone at each level.

Source: arXiv 2502.07780, section 3.3, equations 5 and 6. Level 0 is dense; at the last level the module is gone. Levels
are counted from the widths before any pruning: in a model that is pruned already a ladder is open from where its module
is now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from darwinlm.config import DatabaseConfig
from darwinlm.database.rungs import LEAST_STEPS, expert_rungs, removed_counts
from darwinlm.errors import RequestError
from darwinlm.formats.types import by_size
from darwinlm.models.experts import GROUPED
from darwinlm.models.family import Family
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.sites import Kind


@dataclass(frozen=True)
class Ladder:
    """The levels of one module."""

    name: str
    """Full name of the module."""
    kind: Kind
    layer: int
    columns: int
    """Columns of the output matrix as it is now, C; 0 where the module is gone already."""
    group_size: int
    """Columns that leave together."""
    removed: tuple[int, ...]
    """Groups that go from what is there now, at each level: 0 up to the present one, all at the last."""
    rounds: int | None = None
    """KV heads that lose query heads in turn, where attention stays balanced."""
    rungs: tuple[tuple[int, int], ...] = ()
    """(experts, columns of each) at each level, where the module is a mixture of experts; `columns` are those of all."""
    present: int = 0
    """The level that the module has now, with its weights as they are; those below it are closed."""
    formats: tuple[str, ...] = ("",)
    """Types of ggml that each level can be stored in, the largest first; an empty name is that of the checkpoint."""

    @property
    def open_counts(self) -> tuple[int, ...]:
        """`removed` from the present level on: strictly increasing, 0 first."""
        return self.removed[self.present :]

    @property
    def between(self) -> tuple[int, ...]:
        """`removed` at the levels between the present one and the last."""
        return self.removed[self.present + 1 : -1]

    @property
    def experts(self) -> int:
        """Parts of equally many columns that are pruned apart."""
        return self.rungs[self.present][0] if self.rungs and self.columns else 1

    def mlp(self, level: int) -> LayerWidths:
        """Widths of an MLP at a level, in an otherwise absent layer."""
        if self.rungs:
            experts, width = self.rungs[level]
            return LayerWidths(0, 0, width, experts=experts)
        return LayerWidths(0, 0, self.columns - self.removed[level] * self.group_size)

    @property
    def top(self) -> int:
        """The last level: the module is gone."""
        return len(self.removed) - 1

    def stored_in(self, formats: Sequence[str]) -> Ladder:
        """The same with every level but the last in each of these formats, beside the checkpoint's own: level by level, the
        largest format first. What else is said of levels is then said of these rungs."""
        formats = ("", *by_size(formats))
        count = len(formats)
        removed, rungs = (
            tuple(one for one in each[:-1] for _ in range(count)) + each[-1:] for each in (self.removed, self.rungs)
        )
        return replace(self, removed=removed, rungs=rungs, present=self.present * count, formats=formats)

    def rung(self, level: int, format_: str) -> int:
        """The rung of a level in a format."""
        return level * len(self.formats) + self.formats.index(format_)

    def level(self, rung: int) -> int:
        """The level of a rung."""
        return rung // len(self.formats)

    def format(self, rung: int) -> str:
        """The format of a rung; empty for that of the checkpoint, and where the module is gone."""
        return self.formats[rung % len(self.formats)]


def ladders(shape: ModelShape, config: DatabaseConfig) -> list[Ladder]:
    """The ladders of all modules, also of those that are gone already, attention before MLP, layer by layer. Linear attention
    has none.

    Raises:
        RequestError: the settings do not fit the model's widths, before any pruning or now.
    """
    whole, unit = shape.original, attention_unit(shape, config)
    found: list[Ladder] = []
    for layer, widths in enumerate(shape.layers):
        _check_split(widths, unit, config.tensor_parallel)
        if not widths.linear:
            attention = _attention_ladder(shape.family, layer, whole, unit, shape.head_dim, config)
            live = widths.heads - widths.padding
            rounds = widths.kv_heads or None if attention.rounds else None
            found.append(_as_it_is(attention, widths.heads * shape.head_dim, live * shape.head_dim, rounds))
        if whole.experts:
            found.append(_experts_ladder(shape, layer, config))
        else:
            mlp = _mlp_ladder(shape.family, layer, whole.intermediate, config)
            found.append(_as_it_is(mlp, widths.intermediate, widths.intermediate, None))
    return found


def _as_it_is(ladder: Ladder, columns: int, live: int, rounds: int | None) -> Ladder:
    """A ladder of the whole module, for what pruning has left of it.

    The present level is the last one that leaves at least as much as is there. Where less is there than it leaves, the
    module stays as it is at that level.

    Args:
        ladder: of the whole module.
        columns: that are left.
        live: those of them that count.
        rounds: KV heads that are left, where attention stays balanced.
    """
    whole, now = ladder.columns // ladder.group_size, columns // ladder.group_size
    gone = ladder.columns - live
    present = max(level for level, count in enumerate(ladder.removed) if count * ladder.group_size <= gone)
    removed = [now - (whole - count) if level > present else 0 for level, count in enumerate(ladder.removed)]
    return replace(ladder, columns=columns, removed=tuple(removed), rounds=rounds, present=present)


def attention_unit(shape: ModelShape, config: DatabaseConfig) -> str:
    """What leaves attention together; with multi-head attention all units are the same.

    `auto` is the first of kv_group, balanced, query_head that the layers can still be counted in; but balanced before
    kv_group where KV groups give fewer than `LEAST_STEPS` steps, and balanced ones are more.

    Raises:
        RequestError: earlier pruning left widths that cannot be counted in the unit that is asked for.
    """
    whole, asked = shape.original, config.attention_unit
    if whole.heads == whole.kv_heads:
        return "query_head"
    fits = {
        "kv_group": all(w.heads == w.kv_heads * (whole.heads // whole.kv_heads) for w in shape.layers),
        "balanced": all(w.kv_heads in (0, whole.kv_heads) for w in shape.layers),
        "query_head": True,
    }
    fitting = [unit for unit, fit in fits.items() if fit]
    if asked != "auto" and asked not in fitting:
        raise RequestError(
            f"database.attention_unit is {asked}, but the model's attention was pruned by another unit before, so it has no "
            f"levels of {asked}. Choose {' or '.join(fitting)}, or auto."
        )
    if asked != "auto":
        return asked
    groups, balanced = whole.kv_heads // config.tensor_parallel, whole.heads // whole.kv_heads
    finer = fitting[:2] == ["kv_group", "balanced"] and groups < min(LEAST_STEPS, balanced)
    return fitting[finer]


def _attention_ladder(
    family: Family, layer: int, widths: LayerWidths, unit: str, head_dim: int, config: DatabaseConfig
) -> Ladder:
    group = widths.heads // widths.kv_heads
    group_size = head_dim * (group if unit == "kv_group" else 1)
    at_once = widths.kv_heads if unit == "balanced" else config.tensor_parallel  # groups that one step removes
    columns = widths.heads * head_dim
    steps = columns // group_size // at_once
    whole = family.site("attention").whole
    if whole and len(config.attention_columns or ()) > 2:
        raise RequestError(
            f"database.attention_columns has {len(config.attention_columns or ())} entries, but in this model an attention stays "
            f"or goes as a whole: {whole}. Leave it out, or give [0, {columns}]."
        )
    removed = removed_counts("attention", columns, group_size * at_once, steps, config, config.attention_columns)
    if whole:
        removed = [0, steps]
    return Ladder(
        name=family.module(layer, "attention"),
        kind="attention",
        layer=layer,
        columns=columns,
        group_size=group_size,
        removed=tuple(at_once * count for count in removed),
        rounds=widths.kv_heads if unit == "balanced" else None,
    )


def _check_split(widths: LayerWidths, unit: str, devices: int) -> None:
    """Heads must split evenly over the devices, now and at every level."""
    if devices == 1:
        return
    if widths.heads % devices or widths.kv_heads % devices:
        raise RequestError(
            f"database.tensor_parallel is {devices}, but the model has {widths.heads} query and {widths.kv_heads} KV heads. "
            f"Choose a divisor of {math.gcd(widths.heads, widths.kv_heads)}."
        )
    if unit == "query_head" and widths.heads != widths.kv_heads:
        raise RequestError(
            f"database.tensor_parallel is {devices}, but with database.attention_unit query_head the kept heads decide how "
            "many KV heads stay. Choose kv_group or balanced."
        )


def _experts_ladder(shape: ModelShape, layer: int, config: DatabaseConfig) -> Ladder:
    """Of a mixture of experts as it is now: no rung has more experts, or wider ones."""
    whole, now = shape.original, shape.layers[layer]
    if config.mlp_columns is not None or config.rounding == "paper":
        raise RequestError(
            "database.mlp_columns and database.rounding paper are for layers of one MLP each, but this model's layers have "
            "experts. Leave them out."
        )
    unit, least = config.multiple_of, math.lcm(config.tensor_parallel, GROUPED)
    if whole.intermediate % unit or unit % least:
        choice = math.gcd(whole.intermediate, math.lcm(unit, least))
        raise RequestError(
            f"Each expert has {whole.intermediate} columns, which database.multiple_of = {unit} must divide, and {least} that: "
            f"grouped matrix products and database.tensor_parallel ask for it. Choose {choice}."
        )
    rungs = expert_rungs(
        whole.experts, whole.intermediate, shape.chosen, config.multiple_of, config.levels, config.experts_lose
    )
    wider = [level for level, (count, width) in enumerate(rungs) if count >= now.experts and width >= now.intermediate]
    present = wider[-1]
    left = [(min(count, now.experts), min(width, now.intermediate)) for count, width in rungs]
    return Ladder(
        name=shape.family.module(layer, "mlp"),
        kind="mlp",
        layer=layer,
        columns=now.columns,
        group_size=1,
        removed=tuple(now.columns - count * width for count, width in left),
        rungs=tuple(left),
        present=present,
    )


def _mlp_ladder(family: Family, layer: int, columns: int, config: DatabaseConfig) -> Ladder:
    multiple = 1 if config.mlp_columns is not None else config.multiple_of
    if any(width % config.tensor_parallel for width in (columns, config.multiple_of, *(config.mlp_columns or ()))):
        raise RequestError(
            f"database.tensor_parallel is {config.tensor_parallel}, so the MLP's {columns} columns, database.multiple_of = "
            f"{config.multiple_of} and every entry of database.mlp_columns must be multiples of it."
        )
    units = math.ceil(columns / multiple) if config.rounding == "paper" else columns // multiple
    if config.rounding == "equal" and columns % multiple:
        raise RequestError(
            f"The MLP has {columns} columns, which is no multiple of database.multiple_of = {multiple}. "
            f"Choose a divisor of {columns}, such as {math.gcd(columns, multiple)}, or database.rounding paper."
        )
    removed = removed_counts("mlp", columns, multiple, units, config, config.mlp_columns)
    return Ladder(
        name=family.module(layer, "mlp"),
        kind="mlp",
        layer=layer,
        columns=columns,
        group_size=1,
        removed=tuple(min(columns, multiple * count) for count in removed),
    )
