"""Every method against the definition recomputed on the stock model, or against all answers that there are."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM

import pico
from darwinlm.cli import main
from darwinlm.comparison.methods.evopress import best_of_random, dense_or_gone, evolve_dropped, evopress, in_levels
from darwinlm.comparison.methods.layers import drop_in_order, without_layers
from darwinlm.comparison.methods.random_levels import draw_allocation, random_levels
from darwinlm.comparison.methods.registry import METHODS, methods_named
from darwinlm.comparison.methods.shortened_llama import losses_without, taylor_importances
from darwinlm.comparison.methods.shortgpt import block_influences, shortgpt
from darwinlm.comparison.methods.sliding_cosine import angular_distances, sliding_cosine
from darwinlm.comparison.methods.task import BORROWED, Task
from darwinlm.comparison.methods.ziplm import ziplm, ziplm_kinds
from darwinlm.errors import RequestError
from darwinlm.genome import is_valid
from darwinlm.target.budget import Budget, level_limits

TOKENS = pico.random_tokens(4, 16, seed=5)


def stock(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()


@torch.no_grad()
def residuals(model) -> list[torch.Tensor]:
    """Inputs of every layer and the output of the last one, (S, T, H) each."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
        for layer in model.model.layers
    ]
    model(TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [*seen[::2], seen[-1]]


def all_genomes(task: Task):
    return itertools.product(*(range(ladder.top + 1) for ladder in task.space.ladders))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_ziplm_is_the_best_of_all_genomes_within_the_budget(share, task):
    asked = task(share=share)
    errors = [asked.assembler.database.modules[l.name].relative_errors for l in asked.space.ladders]

    def error(genome):
        return sum(row[level] for row, level in zip(errors, genome))

    within = [genome for genome in all_genomes(asked) if asked.parameters(genome) <= asked.budget]
    assert asked.parameters(ziplm(asked)) <= asked.budget
    assert error(ziplm(asked)) == pytest.approx(min(map(error, within)))
    totals = asked.space.targets(share)
    same = [genome for genome in all_genomes(asked) if asked.space.totals(genome) == totals]
    assert asked.space.totals(ziplm_kinds(asked)) == totals
    assert error(ziplm_kinds(asked)) == pytest.approx(min(map(error, same)))


def test_random_allocations_are_equally_likely():
    tops, total, draws = (2, 1, 3), 3, 6000
    possible = [p for p in itertools.product(*(range(top + 1) for top in tops)) if sum(p) == total]
    rng = random.Random(0)
    counted = Counter(tuple(draw_allocation(tops, total, rng)) for _ in range(draws))
    assert set(counted) == set(possible)
    expected = draws / len(possible)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counted.values())


def test_random_levels_keep_the_budget(task):
    asked = task()
    assert asked.space.totals(random_levels(asked)) == asked.space.totals(asked.uniform)
    norms = asked.stream.source.shape.hidden * len(asked.space.ladders)  # those of absent modules go with them
    assert asked.budget - norms <= asked.parameters(random_levels(asked)) <= asked.budget


@pytest.mark.parametrize(("family", "unit"), [("llama_mha", "auto"), ("llama_gqa", "balanced"), ("qwen3", "kv_group")])
def test_magnitude_removes_the_least_norms_and_refits_nothing(family, unit, task, checkpoint):
    asked = task(family, unit=unit)
    genome = METHODS["magnitude"].find(asked)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
    assert genome == asked.uniform
    with torch.no_grad():
        for ladder, level in zip(asked.space.ladders, genome):
            output = model.get_submodule(ladder.name + (".o_proj" if ladder.kind == "attention" else ".down_proj"))
            columns = output.weight.unflatten(1, (ladder.rounds or 1, -1, ladder.group_size))
            norms = columns.double().norm(dim=(0, 3))  # (runs, units)
            gone = norms.argsort(dim=1)[:, : ladder.removed[level] // norms.shape[0]]
            for run, units in enumerate(gone):
                columns[:, run, units] = 0
            if level == ladder.top and output.bias is not None:
                output.bias.zero_()
    found = METHODS["magnitude"].model(asked, genome, pico.CPU, torch.float32)
    torch.testing.assert_close(found(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama_gqa", "qwen3_bias"])
def test_block_influence_is_one_less_the_mean_cosine(family, source, checkpoint):
    seen = residuals(stock(checkpoint(family)))
    for found, x, y in zip(block_influences(pico.stream(source(family)), TOKENS, 3), seen, seen[1:]):
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in zip(x.flatten(0, 1), y.flatten(0, 1))]
        assert found == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-5)


@pytest.mark.parametrize("family", ["llama_gqa", "qwen3_bias"])
def test_angles_are_those_of_the_last_tokens(family, source, checkpoint):
    seen = [x[:, -1] for x in residuals(stock(checkpoint(family)))]
    found = angular_distances(pico.stream(source(family)), TOKENS, 3)
    for i, j in itertools.combinations(range(len(seen)), 2):
        angles = [math.acos((a @ b / (a.norm() * b.norm())).item()) / math.pi for a, b in zip(seen[i], seen[j])]
        assert found[i][j] == pytest.approx(sum(angles) / len(angles), abs=1e-4)


def test_shortgpt_and_the_window_drop_what_their_scores_say(task, monkeypatch):
    monkeypatch.setattr("darwinlm.comparison.methods.shortgpt.block_influences", lambda *_: [0.3, 0.1, 0.2])
    angles = [[0.0, 0.9, 0.5, 0.9], [0, 0, 0.9, 0.1], [0, 0, 0, 0.9], [0, 0, 0, 0]]
    monkeypatch.setattr("darwinlm.comparison.methods.sliding_cosine.angular_distances", lambda *_: angles)
    asked = task(share=0.5)  # one and a half of three layers, so two leave
    assert shortgpt(asked) == without_layers(asked.space, {1, 2})
    assert sliding_cosine(asked) == without_layers(asked.space, {1, 2})
    assert shortgpt(task(share=0.3)) == without_layers(asked.space, {1})


def test_as_few_layers_leave_as_the_budget_asks(task):
    asked = task(share=0.5)
    two, one = drop_in_order(asked, [2, 0, 1]), without_layers(asked.space, {2})
    assert two == without_layers(asked.space, {0, 2})
    assert asked.parameters(two) <= asked.budget < asked.parameters(one)


@pytest.mark.parametrize("family", ["llama_gqa", "qwen2_tied"])
def test_perplexity_without_a_layer_is_that_of_the_stock_model_without_it(family, task, checkpoint):
    for layer, found in losses_without(task(family)).items():
        model = stock(checkpoint(family))
        model.model.layers = nn.ModuleList(x for i, x in enumerate(model.model.layers) if i != layer)
        with torch.no_grad():
            logits = model(TOKENS, use_cache=False).logits
        expected = cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item()
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["llama_gqa", "qwen2_tied"])
def test_taylor_importance_is_weight_times_gradient(family, task, checkpoint):
    model = stock(checkpoint(family))
    logits = model(TOKENS, use_cache=False).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum").backward()
    for layer, found in taylor_importances(task(family)).items():
        linear = [m.weight for m in model.model.layers[layer].modules() if isinstance(m, nn.Linear)]
        assert len(linear) == 7
        assert found == pytest.approx(sum((w * w.grad).abs().sum().item() for w in linear), rel=1e-4)


@torch.no_grad()
def stock_kls(asked: Task, ways, checkpoint) -> dict[tuple[int, ...], float]:
    """KL of the stock model without modules, by genome; `ways` say of each module whether it is gone."""
    dense = log_softmax(stock(checkpoint("llama_gqa"))(TOKENS).logits, -1)
    kls = {}
    for genome in (tuple(l.top * gone for l, gone in zip(asked.space.ladders, way)) for way in ways):
        masked = pico.mask(stock(checkpoint("llama_gqa")), asked.assembler.database, genome)
        log_q = log_softmax(masked(TOKENS).logits, -1)
        kls[genome] = kl_div(log_q, dense, log_target=True, reduction="none").sum(-1).mean().item()
    return kls


def test_evopress_begins_with_the_best_of_many_random_genomes(task, checkpoint, monkeypatch):
    monkeypatch.setattr("darwinlm.comparison.methods.evopress.STARTS", 200)  # enough to draw all nine
    asked = task()
    ways = [w for w in itertools.product((0, 1), repeat=6) if sum(w[::2]) == sum(w[1::2]) == 1]
    kls = stock_kls(asked, ways, checkpoint)
    assert len(kls) == 9
    found = best_of_random(asked, 1 / 3)
    assert in_levels(asked.space, found) == min(kls, key=lambda genome: kls[genome])


def test_evopress_with_one_module_to_drop_tries_them_all(task, checkpoint):
    asked = task(generations=6, offspring=2, survivors=[1], train_tokens=[0], select_tokens=[64])
    space = dense_or_gone(asked.space)
    ways = [tuple(int(i == mlp) for i in range(len(space.ladders))) for mlp in space.members("mlp")]
    found = evolve_dropped(asked, Budget(level_limits(space, space.totals(ways[0])), space.present), lambda: ways[0])
    kls = stock_kls(asked, ways, checkpoint)
    assert found == min(kls, key=lambda genome: kls[genome])
    assert len(set(kls.values())) == 3


def test_evopress_drops_as_few_modules_as_the_budget_asks(task):
    asked = task(share=0.5)
    found = evopress(asked)
    gone = [kind for kind in asked.space.kinds for i in asked.space.members(kind) if found[i]]
    assert Counter(gone) == {"attention": 2, "mlp": 2}
    assert asked.parameters(found) <= asked.budget


@pytest.mark.parametrize("family", ["llama_mha", "mistral", "qwen2_tied", "qwen3"])
@pytest.mark.parametrize("name", methods_named("all"))
def test_every_method_ends_within_the_budget(name, family, task):
    asked = task(family, share=1 / 3)
    genome = METHODS[name].find(asked)
    model = METHODS[name].model(asked, genome, pico.CPU, torch.float32)
    assert is_valid(asked.space, genome)
    assert model.num_parameters() <= asked.budget
    assert any(genome)


def test_what_methods_share_is_found_once_and_counts_in_each(task, monkeypatch):
    one = task(generations=1)
    other = dataclasses.replace(one, folder=one.folder / "other")
    first = METHODS["darwinlm_untrained"].find(one)
    monkeypatch.setattr("darwinlm.comparison.methods.darwin.first_parent", None)
    METHODS["darwinlm"].find(other)
    assert BORROWED not in one.timings.seconds()
    took = one.found["start attention steps", one.share, one.seed][1]
    assert other.timings.seconds()[BORROWED] == pytest.approx(took, abs=1e-3)
    alone = dataclasses.replace(one, folder=one.folder / "alone", found={})
    monkeypatch.undo()
    assert METHODS["darwinlm_untrained"].find(alone) == first


def test_methods_come_in_the_order_of_the_registry():
    assert methods_named("darwinlm, uniform") == ["uniform", "darwinlm"]
    assert [*methods_named("all"), *methods_named("all", in_formats=True)] == list(METHODS)
    with pytest.raises(RequestError, match="no method 'zplm'; there are: all, uniform"):
        methods_named("uniform,zplm")
    with pytest.raises(RequestError, match="names one_format; it gives modules formats"):
        methods_named("one_format")
    with pytest.raises(RequestError, match="names uniform; with --formats there are: all, one_format"):
        methods_named("uniform", in_formats=True)
    with pytest.raises(RequestError, match="names no method"):
        methods_named(" ,")


def test_help_and_docs_name_every_method(capsys):
    main(["compare", "--help"])
    printed = capsys.readouterr().out
    docs = (Path(__file__).parent.parent / "docs/howto/methods.md").read_text()
    for name in METHODS:
        assert re.search(rf"\b{name}[,\s]", printed)
        assert f"`{name}`" in docs
