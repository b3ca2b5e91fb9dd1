"""Minitron's importances, widths and choice against the stock model with hooks and zeroed columns."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

import pico
from darwinlm.comparison.methods.minitron import activation_norms, equal_widths, minitron
from darwinlm.comparison.methods.orders import ordered_model, removal_order
from darwinlm.database.levels import Ladder
from darwinlm.genome import Space
from darwinlm.target.budget import Budget, Limit

TOKENS = pico.random_tokens(4, 16, seed=5)


def output_of(model, ladder):
    return model.get_submodule(ladder.name + (".o_proj" if ladder.kind == "attention" else ".down_proj"))


@pytest.mark.parametrize(("family", "unit"), [("llama_mha", "auto"), ("llama_gqa", "auto"), ("qwen3_bias", "balanced")])
@torch.no_grad()
def test_units_of_the_least_mean_norms_leave_and_the_best_widths_are_taken(family, unit, task, checkpoint):
    asked = task(family, unit=unit, share=0.4)
    dense = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64)
    truth, ladders = {}, asked.space.ladders

    def keeping(ladder):
        def hook(matrix, arguments):
            norms = arguments[0].unflatten(-1, (-1, ladder.group_size)).square().sum(-1).sqrt()
            truth[ladder.name] = norms.mean(1).square().sum(0).sqrt()

        return hook

    hooks = [output_of(dense, l).register_forward_pre_hook(keeping(l)) for l in ladders]
    target = log_softmax(dense(TOKENS, use_cache=False).logits, -1)
    for hook in hooks:
        hook.remove()
    for name, found in activation_norms(asked).items():
        torch.testing.assert_close(found, truth[name], rtol=1e-4, atol=0)

    def masked(genome):
        model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64)
        for l, level in zip(ladders, genome):
            for gone in removal_order(l, truth[l.name])[: l.removed[level]]:
                output_of(model, l).weight[:, gone * l.group_size : (gone + 1) * l.group_size] = 0
        return model(TOKENS, use_cache=False).logits

    offered = []

    def kept(space, budget, rng):
        offered.extend(equal_widths(space, budget, rng))
        return offered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darwinlm.comparison.methods.minitron.equal_widths", kept)
        genome = minitron(asked)
    kls = {g: kl_div(log_softmax(masked(g), -1), target, log_target=True, reduction="sum").item() for g in offered}
    assert len(kls) > 1
    assert genome == min(kls, key=lambda g: kls[g])
    left = ordered_model(asked, genome, pico.CPU, torch.float32)
    torch.testing.assert_close(left(TOKENS).logits, masked(genome).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_all_layers_have_one_width_and_one_step_more_where_the_budget_lies_between(share):
    """Nine heads in three groups and a wide MLP, as in a small model: steps are coarse, and the budget is met."""
    layers, attention, mlp = 12, (0, 1, 2, 3), tuple(range(9))
    ladders = [
        Ladder(f"model.layers.{i}.{name}", kind, i, removed[-1], 1, removed)
        for i in range(layers)
        for name, kind, removed in (("self_attn", "attention", attention), ("mlp", "mlp", mlp))
    ]
    costs = tuple(
        tuple((30 if l.kind == "attention" else 33) * (l.top - level) for level in range(l.top + 1)) for l in ladders
    )
    most = int((1 - share) * sum(row[0] for row in costs))
    space, budget = Space(tuple(ladders)), Budget((Limit("parameters", most, 0, costs),), (0,) * len(ladders))
    found = equal_widths(space, budget, random.Random(0))
    assert [max(genome[i] for i in space.members("attention")) for genome in found] == sorted(
        {max(genome[i] for i in space.members("attention")) for genome in found}
    )
    for genome in found:
        assert budget.is_full(genome)
        for kind in space.kinds:
            levels = {genome[i] for i in space.members(kind)}
            assert max(levels) - min(levels) <= 1
        assert most - budget.limits[0].spent(genome) < 33
