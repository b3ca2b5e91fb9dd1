"""The ladder of every module: how many groups of columns are gone at each level.

Source: arXiv 2502.07780, section 3.3, equations 5 and 6. Level 0 is dense; at the last level the module is gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from darwinlm.config import DatabaseConfig
from darwinlm.errors import RequestError
from darwinlm.models.shape import LayerWidths, ModelShape

Kind = Literal["attention", "mlp"]
MODULE_OF_KIND: dict[Kind, str] = {"attention": "self_attn", "mlp": "mlp"}
OUTPUT_OF_KIND: dict[Kind, str] = {"attention": "o_proj", "mlp": "down_proj"}
NORM_OF_KIND: dict[Kind, str] = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
"""The norm before a module: it goes when the module goes."""


@dataclass(frozen=True)
class Ladder:
    """The levels of one module."""

    name: str
    """Such as `model.layers.3.mlp`."""
    kind: Kind
    layer: int
    columns: int
    """Columns of the output matrix, C."""
    group_size: int
    """Columns that leave together."""
    removed: tuple[int, ...]
    """Groups gone at each level: 0 first, all last."""
    rounds: int | None = None
    """KV heads that lose query heads in turn, where attention stays balanced."""

    @property
    def top(self) -> int:
        """The last level: the module is gone."""
        return len(self.removed) - 1


def ladders(shape: ModelShape, config: DatabaseConfig) -> list[Ladder]:
    """The ladders of all modules that a model has, attention before MLP, layer by layer.

    Raises:
        RequestError: the settings do not fit the model's widths.
    """
    found: list[Ladder] = []
    for layer, widths in enumerate(shape.layers):
        if widths.heads:
            found.append(_attention_ladder(layer, widths, shape.head_dim, config))
        if widths.intermediate:
            found.append(_mlp_ladder(layer, widths.intermediate, config))
    return found


def attention_unit(widths: LayerWidths, config: DatabaseConfig) -> str:
    """The unit that `auto` stands for in a layer; with multi-head attention all units are the same."""
    if widths.heads == widths.kv_heads:
        return "query_head"
    return "kv_group" if config.attention_unit == "auto" else config.attention_unit


def _attention_ladder(layer: int, widths: LayerWidths, head_dim: int, config: DatabaseConfig) -> Ladder:
    unit = attention_unit(widths, config)
    group = widths.heads // widths.kv_heads
    group_size = head_dim * (group if unit == "kv_group" else 1)
    _check_split(widths, unit, config.tensor_parallel)
    at_once = widths.kv_heads if unit == "balanced" else config.tensor_parallel  # groups that one step removes
    columns = widths.heads * head_dim
    steps = columns // group_size // at_once
    removed = _removed("attention", columns, group_size * at_once, steps, config, config.attention_columns)
    return Ladder(
        name=f"model.layers.{layer}.{MODULE_OF_KIND['attention']}",
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


def _mlp_ladder(layer: int, columns: int, config: DatabaseConfig) -> Ladder:
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
    removed = _removed("mlp", columns, multiple, units, config, config.mlp_columns)
    return Ladder(
        name=f"model.layers.{layer}.{MODULE_OF_KIND['mlp']}",
        kind="mlp",
        layer=layer,
        columns=columns,
        group_size=1,
        removed=tuple(min(columns, multiple * count) for count in removed),
    )


def _removed(
    kind: Kind, columns: int, unit: int, units: int, config: DatabaseConfig, table: Sequence[int] | None
) -> list[int]:
    """Units of `unit` columns that are gone at each level; a module has `units` of them."""
    if table is not None:
        return _from_table(kind, columns, unit, table)
    if config.rounding == "equal":
        steps = nearest_divisor(units, config.levels)
        return [i * units // steps for i in range(steps + 1)]
    exact = columns / unit
    counts = [math.floor(i * exact / config.levels + 0.5) for i in range(config.levels)] + [units]  # eq. 5 and 6
    if len(set(counts)) < len(counts):
        raise RequestError(
            f"The {kind} of {units} units of {unit} columns has no {config.levels} different levels. "
            f"Lower database.levels to at most {columns // unit}, or use database.rounding equal."
        )
    return counts


def _from_table(kind: Kind, columns: int, unit: int, table: Sequence[int]) -> list[int]:
    increasing = all(a < b for a, b in pairwise(table))
    if not increasing or len(table) < 2 or table[0] != 0 or table[-1] != columns or any(c % unit for c in table):
        raise RequestError(
            f"database.{kind}_columns is {list(table)}; it must increase from 0 to {columns}, the columns of the model's "
            f"{kind} output matrix, in multiples of {unit}."
        )
    return [count // unit for count in table]


def nearest_divisor(units: int, asked: int) -> int:
    """The number of equal steps that `units` can be split into, nearest to the `asked` one; the larger of two."""
    divisors = [d for d in range(2, units + 1) if units % d == 0] or [1]
    return min(divisors, key=lambda d: (abs(d - asked), -d))
