"""Ladders against the paper's own tables, and sizes against stock transformers and the paper's parameter counts."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import pico
from darwinlm.config import DatabaseConfig
from darwinlm.cost import database_bytes, nominal_widths
from darwinlm.database.levels import Ladder, ladders
from darwinlm.database.rungs import nearest_divisor
from darwinlm.errors import RequestError
from darwinlm.models.family import family_of
from darwinlm.models.shape import LayerWidths, ModelShape

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_14B = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
    "num_attention_heads": 40, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_8B_ATTENTION = [0, 512, 896, 1408, 1792, 2304, 2816, 3328, 3584, 3968, 4096]
LLAMA_8B_MLP = [0, 1440, 2880, 4288, 5728, 7168, 8608, 10048, 11456, 12896, 14336]


def shape_of(values: dict[str, Any]) -> ModelShape:
    config = AutoConfig.for_model(**values)
    return ModelShape.of(family_of(config.to_dict(), "test"), config)


def one_layer(heads: int = 8, kv_heads: int = 2, head_dim: int = 4, intermediate: int = 96) -> ModelShape:
    widths = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": intermediate}
    others = {"head_dim": head_dim, "hidden_size": heads * head_dim, "num_hidden_layers": 1}
    return shape_of(LLAMA_8B | widths | others)


def ladder_of(kind: str, shape: ModelShape, **settings: Any) -> Ladder:
    return next(ladder for ladder in ladders(shape, DatabaseConfig(**settings)) if ladder.kind == kind)


def mlp_ladder(width: int, **settings: Any) -> Ladder:
    return ladder_of("mlp", one_layer(40, 40, intermediate=width), **settings)


def columns(ladder: Ladder) -> list[int]:
    return [count * ladder.group_size for count in ladder.removed]


def test_the_papers_list_of_mlp_columns() -> None:
    ladder = mlp_ladder(14336, rounding="paper", levels=10, multiple_of=32)
    assert columns(ladder) == LLAMA_8B_MLP
    assert ladder.top == 10


@pytest.mark.parametrize("settings", [{"attention_columns": LLAMA_8B_ATTENTION}, {"mlp_columns": LLAMA_8B_MLP}])
@pytest.mark.parametrize("rounding", ["equal", "paper"])
def test_an_explicit_table_is_taken_as_it_is(settings: dict, rounding: str) -> None:
    ((name, table),) = settings.items()
    kind = name.removesuffix("_columns")
    ladder = ladder_of(kind, shape_of(LLAMA_8B), attention_unit="query_head", rounding=rounding, **settings)
    assert columns(ladder) == table


@pytest.mark.parametrize(
    ("unit", "heads", "kv_heads", "levels", "steps", "per_step", "group_heads"),
    [
        ("auto", 32, 8, 10, 8, 512, 4),  # Llama-3.1-8B: a KV group each step
        ("auto", 14, 2, 10, 7, 256, 1),  # Qwen2.5-0.5B: two KV groups are too few steps
        ("auto", 9, 3, 10, 3, 384, 3),  # SmolLM2-135M: balanced steps are no more
        ("kv_group", 32, 8, 10, 8, 512, 4),
        ("balanced", 32, 8, 10, 4, 1024, 1),  # one query head of every KV head each step
        ("query_head", 32, 8, 10, 8, 512, 1),
        ("auto", 40, 40, 10, 10, 512, 1),  # Llama-2-13B: multi-head, all units are the same
        ("kv_group", 40, 40, 10, 10, 512, 1),
        ("balanced", 40, 40, 10, 10, 512, 1),
        ("kv_group", 8, 1, 10, 1, 1024, 8),  # multi-query: dense or gone
    ],
)
def test_equal_steps_of_attention(
    unit: str, heads: int, kv_heads: int, levels: int, steps: int, per_step: int, group_heads: int
) -> None:
    ladder = ladder_of("attention", one_layer(heads, kv_heads, 128), attention_unit=unit, levels=levels)
    assert columns(ladder) == [step * per_step for step in range(steps + 1)]
    assert ladder.group_size == group_heads * 128
    balanced = unit in ("balanced", "auto") and group_heads == 1 and heads != kv_heads
    assert ladder.rounds == (kv_heads if balanced else None)


@given(st.integers(1, 400), st.integers(1, 12), st.integers(2, 20))
def test_equal_steps_of_the_mlp(units: int, multiple: int, levels: int) -> None:
    ladder = mlp_ladder(units * multiple, levels=levels, multiple_of=multiple)
    steps = {b - a for a, b in itertools.pairwise(ladder.removed)}
    divides = nearest_divisor(units, levels)
    if min(4, levels) <= divides <= 20:
        assert len(steps) == 1
        assert ladder.top == divides
    else:
        assert ladder.top == min(levels, units)
        assert max(steps) - min(steps) <= multiple
    assert all(step % multiple == 0 for step in steps)
    assert (ladder.removed[0], ladder.removed[-1]) == (0, units * multiple)


@given(st.integers(8, 400), st.integers(1, 40), st.integers(2, 8))
def test_the_papers_rounding_is_within_half_a_unit(units: int, multiple: int, levels: int) -> None:
    width = units * multiple
    ladder = mlp_ladder(width, rounding="paper", levels=levels, multiple_of=multiple)
    assert (ladder.removed[0], ladder.removed[-1], ladder.top) == (0, width, levels)
    for level, gone in enumerate(ladder.removed):
        assert gone % multiple == 0
        assert abs(gone - width * level / levels) <= multiple / 2 + 1e-9  # eq. 6


@given(st.integers(2, 500), st.integers(1, 40))
def test_nearest_divisor(units: int, asked: int) -> None:
    steps = nearest_divisor(units, asked)
    assert units % steps == 0
    assert steps >= 2
    distance = abs(steps - asked)
    nearer = [d for d in range(max(2, asked - distance), asked + distance + 1) if units % d == 0]
    assert steps == max(nearer)
    assert all(abs(d - asked) == distance for d in nearer)


def test_one_unit_has_one_step() -> None:
    assert nearest_divisor(1, 10) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"multiple_of": 40}, r"96 columns.*multiple_of = 40.*such as 8.*rounding paper"),
        (
            {"rounding": "paper", "attention_unit": "kv_group"},
            "2 units of 16 columns.*at most 2, or use .*rounding equal",
        ),
        ({"rounding": "paper", "levels": 4}, "mlp of 3 units of 32 columns.*at most 3"),
        ({"attention_columns": [0, 12, 32], "attention_unit": "kv_group"}, "increase from 0 to 32.*multiples of 16"),
        ({"attention_columns": [0, 8, 12, 32], "attention_unit": "balanced"}, "multiples of 8"),
        ({"attention_columns": [0, 16]}, r"database.attention_columns is \[0, 16\]"),
        ({"mlp_columns": [8, 96]}, "increase from 0 to 96"),
        ({"mlp_columns": [0, 50, 50, 96]}, r"\[0, 50, 50, 96\]"),
        ({"mlp_columns": [0]}, "increase from 0 to 96"),
    ],
)
def test_impossible_settings_name_the_remedy(settings: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ladders(one_layer(), DatabaseConfig(**{"attention_unit": "query_head", "levels": 8, **settings}))


@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 39), st.integers(2, 14))
def test_the_remedy_of_too_many_levels_works(units: int, multiple: int, rest: int, levels: int) -> None:
    width, settings = units * multiple + rest % multiple, {"rounding": "paper", "multiple_of": multiple}
    try:
        mlp_ladder(width, levels=levels, **settings)
    except RequestError as fault:
        advised = int(re.search(r"at most (\d+)", str(fault))[1])
        assert 2 <= advised < levels
        mlp_ladder(width, levels=advised, **settings)


def test_absent_modules_stay_at_their_last_level() -> None:
    widths = [LayerWidths(8, 2, 0), LayerWidths(0, 0, 96), LayerWidths(0, 0, 0), LayerWidths(8, 2, 96)]
    shape = one_layer().with_layers(widths)
    found = ladders(shape, DatabaseConfig())
    assert [ladder.name for ladder in found] == [
        f"model.layers.{layer}.{module}" for layer in range(4) for module in ("self_attn", "mlp")
    ]
    gone = {ladder.name for ladder in found if ladder.present == ladder.top}
    assert gone == {f"model.layers.{name}" for name in ("0.mlp", "1.self_attn", "2.self_attn", "2.mlp")}
    assert {ladder.columns == 0 for ladder in found if ladder.name in gone} == {True}
    assert {ladder.present for ladder in found if ladder.name not in gone} == {0}


@pytest.mark.parametrize(
    ("values", "table", "billions"),
    [(LLAMA_8B, LLAMA_8B_ATTENTION, (8.0, 4.6)), (QWEN_14B, list(range(0, 5121, 512)), (14.8, 8.4))],
    ids=["Llama-3.1-8B", "Qwen2.5-14B"],
)
def test_the_papers_model_sizes(values: dict, table: list[int], billions: tuple[float, float]) -> None:
    shape = shape_of(values)
    config = DatabaseConfig(attention_unit="query_head", rounding="paper", attention_columns=table)
    found = ladders(shape, config)
    pruned = shape.with_layers(nominal_widths(shape, found, [5] * len(found)))
    assert tuple(round(s.parameters / 1e9, 1) for s in (shape, pruned)) == billions


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_parameters_equal_those_of_transformers(family: str) -> None:
    config = pico.config(family)
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.of(family_of(config.to_dict(), family), config)
    assert shape.parameters == stock.num_parameters()
    layer = stock.model.layers[0]
    widths = shape.layers[0]
    attention, mlp, norm = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (layer.self_attn, layer.mlp, layer.input_layernorm)
    )
    assert shape.module_parameters(widths.without({"mlp"})) == attention + norm
    assert shape.module_parameters(widths.without({"attention"})) == mlp + norm


def test_database_bytes_of_the_papers_models() -> None:
    """The paper keeps zeros: 44 GB for its 7 B model with multi-head attention; the kept columns alone are 18 GB."""
    llama_2_7b = shape_of(LLAMA_8B | {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32})
    config = DatabaseConfig(rounding="paper", attention_unit="query_head")
    assert round(database_bytes(llama_2_7b, ladders(llama_2_7b, config), 2) / 1e9) == 18


@pytest.mark.parametrize(("unit", "steps"), [("kv_group", 4), ("balanced", 4)])
def test_heads_stay_divisible_by_the_tensor_parallel_size(unit: str, steps: int) -> None:
    shape = shape_of(LLAMA_8B)
    ladder = ladder_of("attention", shape, attention_unit=unit, tensor_parallel=2)
    assert ladder.top == steps
    for level in range(ladder.top + 1):
        (widths,) = {w for i, w in enumerate(nominal_widths(shape, [ladder], (level,))) if i == ladder.layer}
        assert widths.heads % 2 == widths.kv_heads % 2 == 0
    multi_head = ladder_of("attention", one_layer(heads=8, kv_heads=8), tensor_parallel=4)
    assert multi_head.removed == (0, 4, 8)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tensor_parallel": 3}, "Choose a divisor of 8"),
        ({"tensor_parallel": 2, "attention_unit": "query_head"}, "Choose kv_group or balanced"),
        (
            {"tensor_parallel": 2, "attention_columns": LLAMA_8B_ATTENTION, "attention_unit": "kv_group"},
            "multiples of 1024",
        ),
        ({"tensor_parallel": 8, "multiple_of": 4}, "database.multiple_of = 4"),
        ({"tensor_parallel": 8, "mlp_columns": [0, 4, 14336]}, "every entry of database.mlp_columns"),
    ],
)
def test_what_cannot_be_split_over_devices_is_refused(settings: dict, reason: str) -> None:
    with pytest.raises(RequestError, match=re.escape(reason)):
        ladders(shape_of(LLAMA_8B), DatabaseConfig(**settings))
