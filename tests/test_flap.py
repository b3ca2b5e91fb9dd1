"""FLAP's scores, threshold and biases against the stock model with hooks and zeroed columns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import pico
from darwinlm.comparison.methods.flap import flap, flap_no_bias, under_one_threshold
from darwinlm.comparison.methods.orders import ordered_model, removal_order
from darwinlm.database.levels import Ladder
from darwinlm.target.budget import Budget, Limit

TOKENS = pico.random_tokens(4, 16, seed=5)


def output_of(model, ladder):
    return model.get_submodule(ladder.name + (".o_proj" if ladder.kind == "attention" else ".down_proj"))


@torch.no_grad()
def inputs_of(model, ladders) -> dict[str, torch.Tensor]:
    """{module: (tokens, C)} of the stock model."""
    seen: dict[str, torch.Tensor] = {}

    def keeping(name):
        return lambda matrix, arguments: seen.update({name: arguments[0].flatten(0, 1)})

    hooks = [output_of(model, l).register_forward_pre_hook(keeping(l.name)) for l in ladders]
    model(TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("family", "unit"),
    [("llama_mha", "auto"), ("llama_bias", "auto"), ("llama_gqa", "balanced"), ("qwen3", "query_head")],
)
@pytest.mark.parametrize("method", [flap, flap_no_bias])
@torch.no_grad()
def test_the_model_is_the_stock_one_with_means_in_place_of_columns(method, family, unit, task, checkpoint):
    asked = task(family, share=0.4, unit=unit)
    genome = method(asked)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64)
    seen, biases = inputs_of(model, asked.space.ladders), 0
    for l, level in zip(asked.space.ladders, genome):
        matrix, x = output_of(model, l), seen[l.name]
        scores = x.var(dim=0) * matrix.weight.square().sum(0)
        units = ((scores - scores.mean()) / scores.std()).view(-1, l.group_size).mean(1)
        gone = torch.tensor(removal_order(l, units)[: l.removed[level]], dtype=torch.int64)
        columns = (gone[:, None] * l.group_size + torch.arange(l.group_size)).flatten()
        mean = matrix.weight[:, columns] @ x.mean(0)[columns]
        matrix.weight[:, columns] = 0
        if level == l.top and matrix.bias is not None:
            matrix.bias.zero_()
        if method is flap and 0 < level < l.top:
            biases += matrix.out_features * (matrix.bias is None)
            matrix.bias = torch.nn.Parameter(mean if matrix.bias is None else matrix.bias + mean)
    left = ordered_model(asked, genome, pico.CPU, torch.float32)
    torch.testing.assert_close(left(TOKENS).logits, model(TOKENS).logits.float(), rtol=0, atol=1e-4)
    assert left.num_parameters() <= asked.budget
    if unit != "query_head":  # there the heads decide what a layout holds
        assert left.num_parameters() == asked.parameters(genome) + biases


def fine_ladder(number: int, units: int, steps: int) -> Ladder:
    removed = tuple(step * units // steps for step in range(steps + 1))
    return Ladder(f"model.layers.{number}.mlp", "mlp", number, units, 1, removed)


@given(st.integers(0, 10**6), st.integers(1, 35))
def test_at_single_units_the_kept_are_those_of_the_greatest_scores(seed, most):
    generator = torch.Generator().manual_seed(seed)
    ladders = [fine_ladder(i, 12, 12) for i in range(3)]
    scores = [torch.randn(12, generator=generator, dtype=torch.float64) for _ in ladders]
    limit = Limit("units", most, 0, tuple(tuple(12 - gone for gone in l.removed) for l in ladders))
    genome = under_one_threshold(ladders, scores, Budget((limit,), (0, 0, 0)))
    best = torch.cat(scores).topk(most).values.min()
    assert [12 - level for level in genome] == [int((score >= best).sum()) for score in scores]


@given(st.integers(0, 10**6), st.integers(4, 40))
def test_on_coarse_ladders_levels_are_near_one_threshold_and_the_budget_is_full(seed, most):
    generator = torch.Generator().manual_seed(seed)
    ladders = [fine_ladder(i, 12, steps) for i, steps in enumerate((3, 4, 6, 12))]
    scores = [torch.randn(12, generator=generator, dtype=torch.float64) for _ in ladders]
    limit = Limit("units", most, 0, tuple(tuple(12 - gone for gone in l.removed) for l in ladders))
    budget = Budget((limit,), (0, 0, 0, 0))
    genome = under_one_threshold(ladders, scores, budget)
    assert budget.is_full(genome)
    near = []  # genomes of all thresholds
    for threshold in torch.cat(scores).tolist():
        under = [int((score <= threshold).sum()) for score in scores]
        near.append(
            tuple(
                max(i for i, gone in enumerate(l.removed) if i == 0 or 2 * n >= gone + l.removed[i - 1])
                for l, n in zip(ladders, under)
            )
        )
    first = min((g for g in near if budget.within(g)), key=sum)
    assert all(level <= other for level, other in zip(genome, first))  # what was left over went back
