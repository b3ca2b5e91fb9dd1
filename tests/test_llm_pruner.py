"""LLM-Pruner's importances, order and spared layers against the stock model's own gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import pico
from darwinlm.comparison.methods.llm_pruner import importances, llm_pruner, uniform_between
from darwinlm.comparison.methods.orders import ordered_model, removal_order
from darwinlm.comparison.methods.taylor import saliences
from darwinlm.database.levels import Ladder
from darwinlm.genome import Space

TOKENS = pico.random_tokens(4, 16, seed=5)


def coupled_importances(model, ladder) -> torch.Tensor:
    """(G,) by the definition: every weight that a unit takes with it, cut out of the stock model's matrices."""
    module, units = model.get_submodule(ladder.name), ladder.columns // ladder.group_size
    product = {name: (w * w.grad).abs() for name, w in module.named_parameters() if w.ndim == 2}
    if ladder.kind == "mlp":
        gate, up, down = (product[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
        return gate.sum(1) + up.sum(1) + down.sum(0)
    head_dim, found = module.head_dim, []
    for unit in range(units):
        columns = slice(unit * ladder.group_size, (unit + 1) * ladder.group_size)
        total = product["q_proj.weight"][columns].sum() + product["o_proj.weight"][:, columns].sum()
        if units == module.config.num_key_value_heads:
            rows = slice(unit * head_dim, (unit + 1) * head_dim)
            total = total + product["k_proj.weight"][rows].sum() + product["v_proj.weight"][rows].sum()
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize(
    ("family", "unit"),
    [("llama_mha", "auto"), ("llama_gqa", "kv_group"), ("llama_gqa", "balanced"), ("qwen3_bias", "query_head")],
)
def test_a_unit_counts_all_weights_that_leave_with_it_and_the_least_leave(family, unit, task, checkpoint):
    asked = task(family, unit=unit)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64)
    logits = model(TOKENS, use_cache=False).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum").backward()
    genome, sums = llm_pruner(asked), saliences(asked)
    with torch.no_grad():
        for ladder, level in zip(asked.space.ladders, genome):
            truth = coupled_importances(model, ladder)
            found = importances(ladder, asked.assembler.source.shape, sums)
            torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=0)
            output = model.get_submodule(ladder.name + (".o_proj" if ladder.kind == "attention" else ".down_proj"))
            for gone in removal_order(ladder, truth)[: ladder.removed[level]]:
                output.weight[:, gone * ladder.group_size : (gone + 1) * ladder.group_size] = 0
            if level == ladder.top and output.bias is not None:
                output.bias.zero_()
        left = ordered_model(asked, genome, pico.CPU, torch.float32)
        torch.testing.assert_close(left(TOKENS).logits, model(TOKENS).logits.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "steps", "share", "spared"),
    [
        (32, (8, 8), 0.25, {"attention": (4, 2), "mlp": (4, 2)}),  # as in its settings for 32 layers
        (30, (3, 8), 0.25, {"attention": (4, 2), "mlp": (4, 2)}),
        (30, (3, 8), 0.635, {"attention": (0, 0), "mlp": (4, 2)}),  # two of three steps of 28 attentions do not suffice
        (8, (8, 8), 0.5, {"attention": (1, 1), "mlp": (1, 1)}),
        (32, (8, 8), 0.8, {"attention": (1, 1), "mlp": (1, 1)}),  # seven of eight steps of 30 layers
        (32, (8, 8), 0.9, {"attention": (0, 0), "mlp": (0, 0)}),
        (3, (8, 8), 0.5, {"attention": (0, 0), "mlp": (0, 0)}),
    ],
)
def test_as_many_layers_at_both_ends_are_spared_as_the_budget_leaves(layers, steps, share, spared, task, monkeypatch):
    asked = task(share=share)
    modules = (("self_attn", "attention", steps[0]), ("mlp", "mlp", steps[1]))
    space = Space(
        tuple(
            Ladder(f"model.layers.{layer}.{name}", kind, layer, top, 1, tuple(range(top + 1)))
            for layer in range(layers)
            for name, kind, top in modules
        )
    )
    monkeypatch.setattr(type(asked), "space", property(lambda self: space))
    genome = uniform_between(asked)
    assert space.totals(genome) == space.targets(share)
    for kind in space.kinds:
        levels = {space.ladders[i].layer: genome[i] for i in space.members(kind)}
        touched = [layer for layer, level in levels.items() if level]
        assert (min(touched), layers - 1 - max(touched)) == spared[kind]
        inside = [level for layer, level in levels.items() if min(touched) <= layer <= max(touched)]
        assert max(inside) - min(inside) <= 1
        assert spared[kind] == (0, 0) or max(inside) < levels_of(space, kind)


def levels_of(space, kind: str) -> int:
    """The last level of a kind."""
    return space.ladders[space.members(kind)[0]].top


def test_the_levels_are_those_of_the_budget(task):
    asked = task("llama_mha", share=1 / 3)
    assert asked.space.totals(llm_pruner(asked)) == asked.space.totals(asked.uniform)
    assert math.isclose(asked.parameters(llm_pruner(asked)), asked.budget, rel_tol=0.01)
