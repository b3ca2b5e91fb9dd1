"""Mixtures of experts: their ladders, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

import darwinlm
import pico
from darwinlm.database.rungs import expert_rungs
from darwinlm.errors import RequestError

MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


@given(
    st.integers(1, 64), st.integers(1, 24), st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), st.data()
)  # E, units of columns, columns of a unit
def test_rungs_keep_equal_shares_of_all_columns(experts, units, multiple, chosen, steps, data) -> None:
    chosen, leaves = min(chosen, experts), data.draw(st.sampled_from(["both", "experts", "columns"]))
    rungs = expert_rungs(experts, units * multiple, chosen, multiple, steps, leaves)
    assert (rungs[0], rungs[-1]) == ((experts, units * multiple), (0, 0))
    for (many, wide), (fewer, narrower) in pairwise(rungs[:-1]):
        assert chosen <= fewer <= many
        assert narrower <= wide
        assert (fewer, narrower) != (many, wide)
        assert narrower % multiple == 0 < narrower
    if leaves == "columns":
        assert {count for count, _ in rungs[:-1]} == {experts}
    if leaves == "experts" and chosen == 1:
        assert {width for _, width in rungs[:-1]} == {units * multiple}
    if len(rungs) == steps + 1 and leaves == "both" and units >= steps and experts >= 4 * chosen * steps:
        for level, (count, width) in enumerate(rungs[:-1]):
            share = count * width / (experts * units * multiple)
            assert share == pytest.approx(1 - level / steps, abs=1 / units)


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        ({"mlp_only_layers": [1]}, {}, "layers with experts and layers without"),
        ({"decoder_sparse_step": 2}, {}, "layers with experts and layers without"),
        ({"num_experts_per_tok": 5}, {}, "num_experts_per_tok is 5, of 4 experts"),
        ({}, {"database": {"rounding": "paper", "levels": 2}}, "layers of one MLP each"),
        ({}, {"database": {"mlp_columns": [0, 64]}}, "layers of one MLP each"),
        ({}, {"database": {"multiple_of": 32}}, "has 16 columns.*Choose 16"),
        ({}, {"target": {"speedup": 2.0}}, "latency table"),
    ],
)
def test_what_experts_cannot_be_is_refused(values, settings, said, tmp_path) -> None:
    AutoConfig.for_model("qwen3_moe", **{**pico.COMMON, **MOE, **values}).save_pretrained(tmp_path)
    asked = {"database": {"multiple_of": 8}, **settings}
    with pytest.raises(RequestError, match=said):
        darwinlm.plan(str(tmp_path), **asked)


def test_experts_by_other_names_are_not_pruned(tmp_path, text) -> None:
    AutoConfig.for_model("mixtral", **pico.COMMON).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="mixtral, which DarwinLM plans, but does not prune"):
        darwinlm.prune(str(tmp_path), data=str(text), output=str(tmp_path / "run"), database={"multiple_of": 8})
