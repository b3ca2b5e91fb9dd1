"""Mixtures of experts: their ladders, and what is refused."""

from __future__ import annotations

import copy
import functools
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.database.experts import Sample, by_change, by_norm, expert_order
from darwinlm.database.rungs import expert_rungs
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.source import ModelSource
from darwinlm.refit.least_squares import shared
from darwinlm.runtime.files import read_json
from training import BATCH, BLOCKS, LENGTH, TRAIN, write_text

MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
RUN = {**pico.RUN, "database": {**pico.RUN["database"], "multiple_of": 8}}


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
        ({}, {"database": {"multiple_of": 4}}, "multiple_of = 4 must divide, and 8 that.*Choose 8"),
        ({}, {"target": {"speedup": 2.0}}, "latency table"),
    ],
)
def test_what_experts_cannot_be_is_refused(values, settings, said, tmp_path) -> None:
    AutoConfig.for_model("qwen3_moe", **{**pico.COMMON, **MOE, **values}).save_pretrained(tmp_path)
    asked = {"database": {"multiple_of": 8}, **settings}
    with pytest.raises(RequestError, match=said):
        darwinlm.plan(str(tmp_path), **asked)


@pytest.mark.parametrize("leaves", ["experts", "columns", "both"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe_normed", "olmoe"])
def test_without_experts_or_columns_it_is_the_masked_model_and_learns(
    name, leaves, source, checkpoint, tmp_path
) -> None:
    database = pico.make_database(tmp_path / "database", source(name), levels=4, experts_lose=leaves)
    ladders, whole = database.ladders(), source(name).shape.layers[0]
    genome = tuple(min(1 + ladder.layer, ladder.top - 1) if ladder.rungs else 0 for ladder in ladders)
    kept = [ladder.rungs[level] for ladder, level in zip(ladders, genome) if ladder.rungs]
    assert any(count < whole.experts for count, _ in kept) == (leaves != "columns")
    assert all(count >= source(name).shape.chosen for count, _ in kept)
    export_checkpoint(Assembler(source(name), database), genome, tmp_path / "model", {}, {})
    ours, truth = load(tmp_path / "model"), pico.zero_masked(checkpoint(name), database, genome)
    tokens = pico.random_tokens(2, 20, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, truth(tokens).logits, atol=1e-4, rtol=1e-4)
    before = loss(ours, tokens)
    before.backward()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter -= 1e-3 * parameter.grad
        assert loss(ours, tokens) < before
        ours.save_pretrained(tmp_path / "again")
        assert torch.equal(load(tmp_path / "again")(tokens).logits, ours(tokens).logits)


def load(folder) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def loss(model, tokens) -> Tensor:
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("name", ["qwen3_moe_normed", "olmoe"])
@torch.no_grad()
def test_the_change_without_experts_is_that_of_the_stock_layer(name, source, checkpoint) -> None:
    stock = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32).eval().model.layers[0].mlp
    (block,) = pico.stream(source(name)).blocks(1)
    inputs = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    sample, dense = Sample(block.mixture, inputs), stock(inputs[None])[0]
    assert sample.power == pytest.approx(dense.square().sum(1).mean().item(), rel=1e-4)

    def change(stay) -> float:
        twin = copy.deepcopy(stock)
        twin.gate.forward = functools.partial(
            pico._closed, stock.gate, [e for e in range(sample.mixture.count) if e not in stay]
        )
        return (twin(inputs[None])[0] - dense).square().sum(1).mean().item()

    every = range(sample.mixture.count)
    for stay in combinations(every, len(every) - 2):
        assert sample.change(stay) == pytest.approx(change(stay), rel=1e-3)
    first = min(every, key=lambda gone: change([e for e in every if e != gone]))
    assert by_change(sample, 3)[-1] == first
    _, weights, chosen = stock.gate(inputs)
    outputs = block.mixture.outputs(inputs)
    norms = [(outputs[:, e].norm(dim=1)[:, None] * weights)[chosen == e].mean().item() for e in every]
    assert by_norm(sample, 3) == sorted(every, key=lambda e: -norms[e])


def test_the_order_with_less_change_on_tokens_held_back_is_taken(source) -> None:
    (block,) = pico.stream(source("qwen3_moe_normed")).blocks(1)
    inputs = list(torch.randn(16, 8, 32, generator=torch.Generator().manual_seed(2)))
    order = expert_order(block.mixture, inputs, [(6, 16), (4, 16), (3, 16), (0, 0)])
    fit, held = (
        Sample(block.mixture, torch.cat([x for i, x in enumerate(inputs) if (i % 8 == 1) == h])) for h in (0, 1)
    )
    found = {"change": by_change(fit, 3), "norm": by_norm(fit, 3)}
    errors = {name: sum(held.change(one[:n]) for n in (3, 4)) / 2 / held.power for name, one in found.items()}
    assert order.errors == pytest.approx(errors)
    assert order.experts == found[min(errors, key=errors.__getitem__)]
    assert order.absent == pytest.approx(
        {6: 0.0, 4: fit.change(order.experts[:4]), 3: fit.change(order.experts[:3]), 0: fit.power}
    )


def test_what_is_lacking_is_shared_out_among_experts() -> None:
    """Changes that lower the errors of all parts by themselves lower that of the whole at least as much."""
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 9, 12, generator=generator).double(), torch.randn(2, 9, 5, generator=generator).double()
    x[:, ::2, :4] = 0  # not all parts are reached by every token
    parts = list(shared(x, e, 3))
    assert sum(lack.square().sum() for _, lack in parts) == pytest.approx(e.square().sum().item(), rel=1e-5)
    changes = [torch.linalg.lstsq(inputs, lack).solution for inputs, lack in parts]
    bound = sum((lack - inputs @ change).square().sum() for (inputs, lack), change in zip(parts, changes))
    reached = (e - x @ torch.cat(changes).double()).square().sum()
    assert reached < bound < e.square().sum()


@pytest.mark.parametrize("leaves", ["experts", "both"])
def test_a_mixture_is_pruned_and_refitted_by_one_command(leaves, checkpoint, text, tmp_path) -> None:
    run = {**RUN, "database": {**RUN["database"], "experts_lose": leaves}, "refit": {"tokens": 512}}
    darwinlm.prune(str(checkpoint("olmoe")), data=str(text), output=str(tmp_path), **run)
    summary = read_json(tmp_path / "summary.json")
    assert summary["pruned"]["parameters"] < summary["dense"]["parameters"]
    assert summary["pruned"]["kl"] > 0
    pruned = ModelSource(str(tmp_path / "model"))
    assert load(tmp_path / "model").num_parameters() == pruned.shape.parameters
    assert min(layer.experts for layer in pruned.shape.layers if layer.intermediate) >= 2


def test_experts_that_few_tokens_take_are_named(checkpoint, text, tmp_path) -> None:
    blocks = {**RUN["blocks"], "hessian": 2}
    darwinlm.build_database(str(checkpoint("olmoe")), data=str(text), output=str(tmp_path), **{**RUN, "blocks": blocks})
    with safe_open(tmp_path / "blocks.safetensors", "pt") as file:
        tokens = file.get_tensor("hessian").long()
    model, counts = AutoModelForCausalLM.from_pretrained(checkpoint("olmoe"), dtype=torch.float32), []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda _, inputs, found: counts.append(found[-1].flatten().bincount(minlength=4))
        )
    with torch.no_grad():
        model(tokens)
    page = darwinlm.report(tmp_path).path.read_text(encoding="utf-8")
    modules = Database.open(tmp_path / "database").modules
    for layer, taken in enumerate(counts):
        few = {str(expert): count for expert, count in enumerate(taken.tolist()) if count < 16}
        assert modules[f"model.layers.{layer}.mlp"].rare == few
        assert all(f"expert {expert} ({count})" in page for expert, count in few.items())
    assert any(taken.min() < 16 for taken in counts)


@pytest.fixture(scope="module")
def narrowed(source, tmp_path_factory) -> Path:
    """A pruned Mixtral: its layers have other experts, of other widths."""
    folder = tmp_path_factory.mktemp("narrowed")
    database = pico.make_database(folder / "database", source("mixtral"), levels=4)
    genome = tuple(1 + ladder.layer if ladder.rungs else 0 for ladder in database.ladders())
    export_checkpoint(Assembler(source("mixtral"), database), genome, folder / "model", {}, {})
    return folder / "model"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_pruned_mixture_is_trained(method, narrowed, tmp_path) -> None:
    asked = {**TRAIN, "tokens": 2 * BATCH * LENGTH, "method": method, "warmup_steps": 0}
    text = write_text(tmp_path)
    summary = darwinlm.train(
        str(narrowed), data=str(text), output=str(tmp_path / "run"), blocks=BLOCKS, train=asked
    ).summary
    assert summary["trained"]["perplexity"] < summary["before"]["perplexity"]
    before, after = ModelSource(str(narrowed)), ModelSource(str(tmp_path / "run/model"))
    assert list(after.files) == list(before.files)
    same = {name for name in before.files if torch.equal(before.tensors([name])[name], after.tensors([name])[name])}
    assert any(".experts." in name for name in same) == (method == "lora")
    assert not any("self_attn.q_proj" in name for name in same)
    assert load(tmp_path / "run/model").num_parameters() == before.shape.parameters


@torch.no_grad()
def test_columns_of_experts_that_are_masked_are_cut(checkpoint, tmp_path) -> None:
    masked = AutoModelForCausalLM.from_pretrained(checkpoint("mixtral"), dtype=torch.float32).eval()
    first, second, _ = (layer.mlp.experts for layer in masked.model.layers)
    first.down_proj[0, :, 4:], first.down_proj[1:, :, :7] = 0, 0
    first.gate_up_proj[1:, 16 + 15] = 0  # rows of the matrix up
    second.down_proj.zero_()
    masked.save_pretrained(tmp_path / "masked")
    pico.tokenizer().save_pretrained(tmp_path / "masked")
    found = darwinlm.import_checkpoint(tmp_path / "masked", tmp_path / "out").found
    assert [(layer.experts, layer.intermediate) for layer in found.after.layers] == [(4, 8), (0, 0), (4, 16)]
    tokens = pico.random_tokens(2, 20, seed=3)
    torch.testing.assert_close(load(tmp_path / "out")(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "flap", "shortened_llama_taylor", "sheared"])
def test_methods_that_know_no_experts_say_so(method, checkpoint, text, tmp_path) -> None:
    with pytest.raises(RequestError, match=f"does not work on the family olmoe: .*have experts. Leave {method} out"):
        darwinlm.compare(str(checkpoint("olmoe")), data=str(text), methods=method, output=str(tmp_path), **RUN)


def test_the_stock_shape_of_a_mixture_is_its_stock_class(checkpoint, text, tmp_path) -> None:
    run = {**RUN, "target": {"parameters": "70%", "shape": "stock"}, "search": {"generations": 0}}
    darwinlm.prune(str(checkpoint("mixtral")), data=str(text), output=str(tmp_path), **run)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(stock).__name__ == "MixtralForCausalLM"
    assert stock.num_parameters() == read_json(tmp_path / "summary.json")["pruned"]["parameters"]
    _, form = darwinlm.export_checkpoint(tmp_path / "model", format="gguf", dtype="q8_0").forms
    assert form.path.stat().st_size > 0
    with pytest.raises(RequestError, match="llama-quantize makes q4_k_m: write f16"):
        darwinlm.export_checkpoint(tmp_path / "model", format="gguf", dtype="q4_k_m")
