"""Every family of the table against stock transformers: dense, narrower, and with modules that are gone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM

import pico
from darwinlm.assemble import Assembler
from darwinlm.config import DatabaseConfig, TargetConfig
from darwinlm.cost import nominal_module
from darwinlm.database.levels import ladders
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Space
from darwinlm.models.check import check_streamed
from darwinlm.models.family import family_of, known_families
from darwinlm.models.heterogeneous import modeling, where_it_can
from darwinlm.models.sites import KINDS
from darwinlm.models.source import ModelSource
from darwinlm.search.linearize import level_moves
from darwinlm.target.target import Target

NAMES = [*pico.MORE, *pico.EXPERTS, "llama_bias", "mistral", "qwen2", "qwen3"]
PAD = 0


@pytest.fixture(scope="module")
def levels(source, tmp_path_factory) -> Callable[[str], Database]:
    """Family -> its database."""
    return functools.cache(lambda name: pico.make_database(tmp_path_factory.mktemp(name), source(name)))


def genomes(database: Database) -> dict[str, tuple[int, ...]]:
    """Everything narrower; modules gone at every place; only one MLP left; nothing left."""
    ladders = database.ladders()
    narrow = tuple(min(1 + i % 2, max(ladder.top - 1, 0)) for i, ladder in enumerate(ladders))
    gone = {"first": (0, 3, 4), "last": (1, 4, 5), "one": (0, 1, 2, 4, 5), "all": range(6)}
    return {"narrow": narrow} | {
        name: tuple(ladder.top if i in places else narrow[i] for i, ladder in enumerate(ladders))
        for name, places in gone.items()
    }


def test_the_tests_go_through_every_family() -> None:
    tested = {pico.EVERY[name]["model_type"] for name in NAMES}
    assert tested == set(known_families())


@pytest.mark.parametrize("name", NAMES)
def test_streamed_blocks_and_head_equal_the_stock_model(name: str, source, checkpoint) -> None:
    tokens, opened = pico.random_tokens(3, 24), source(name)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32).eval()
    with torch.no_grad():
        ours = opened.head().logits(pico.stream(opened).final_hidden(tokens, batch=2))
        torch.testing.assert_close(ours, stock(tokens).logits, rtol=0, atol=2e-5)
    assert opened.shape.parameters == stock.num_parameters()
    check_streamed(opened)
    assert set(opened.shape.outlines()) == set(opened.files)


@torch.no_grad()
def logits(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    return model(input_ids=tokens, **options).logits


def padded() -> dict[str, Tensor]:
    """Prompts of unequal length, padded on the left."""
    tokens = pico.random_tokens(3, 12, seed=5)
    mask = torch.ones_like(tokens)
    for row, pads in enumerate((0, 4, 8)):
        tokens[row, :pads], mask[row, :pads] = PAD, 0
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_checkpoint_is_the_masked_model(name: str, source, checkpoint, levels, tmp_path) -> None:
    """Exported and loaded as users do: logits, the attention implementations, caches, padding, and saved again."""
    assembler, database, tokens = Assembler(source(name), levels(name)), levels(name), pico.random_tokens(2, 20, seed=3)
    for case, genome in genomes(database).items():
        folder = tmp_path / case
        export_checkpoint(assembler, genome, folder, {}, {})
        ours, truth = load(folder), pico.zero_masked(checkpoint(name), database, genome)
        expected = logits(truth, tokens)
        torch.testing.assert_close(logits(ours, tokens), expected, atol=1e-4, rtol=1e-4)
        assert ours.num_parameters() == assembler.shape(genome).parameters
        written = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
        continued = truth.generate(**padded(), **written)
        for use_cache in (True, False):
            assert torch.equal(ours.generate(**padded(), **written, use_cache=use_cache), continued)
        if case == "first":
            check_streamed(ModelSource(str(folder)))
            ours.set_attn_implementation("eager")
            torch.testing.assert_close(logits(ours, tokens), expected, atol=1e-4, rtol=1e-4)
            ours.save_pretrained(tmp_path / "again")
            assert torch.equal(logits(load(tmp_path / "again"), tokens), logits(load(folder), tokens))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in pico.EXPERTS])
def test_what_a_backward_pass_keeps_of_an_mlp_is_what_is_planned(name: str) -> None:
    hidden, columns, tokens = 16, 1024, 10
    mlp = pico.random_model(name, hidden_size=hidden, intermediate_size=columns).model.layers[0].mlp
    values = kept(mlp, torch.ones(1, tokens, hidden, requires_grad=True))
    site = known_families()[pico.EVERY[name]["model_type"]].site("mlp")
    assert 0.8 * site.saved < values / tokens / columns <= site.saved + 2 * hidden / columns


def kept(module: torch.nn.Module, inputs: Tensor) -> float:
    """Numbers beside parameters that the backward pass of a module needs."""
    known, found = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(inputs)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in known) / 4


def test_linear_attention_keeps_what_is_planned(source) -> None:
    shape, model, tokens = source("qwen3_5_text").shape, pico.random_model("qwen3_5_text"), 512
    layer = model.model.layers[0]
    values = kept(
        torch.nn.Sequential(layer.input_layernorm, layer.linear_attn), torch.ones(1, tokens, 32, requires_grad=True)
    )
    assert values / tokens == pytest.approx(shape.stock.linear.token, rel=0.05)
    cache = model(input_ids=pico.random_tokens(1, 70)).past_key_values
    states = [held[0].numel() for one in cache.layers[::2] for held in (one.conv_states, one.recurrent_states)]
    assert sum(states) == shape.states
    assert sum(2 * one.keys[0, :, 0].numel() for one in cache.layers[1::2]) == shape.kv_cache_values_per_token


def test_what_linear_attention_holds_counts_and_never_leaves(source) -> None:
    shape, stock = source("qwen3_5_text").shape, pico.random_model("qwen3_5_text")
    mixers = [
        sum(p.numel() for module in (layer.linear_attn, layer.input_layernorm) for p in module.parameters())
        for layer in stock.model.layers[::2]
    ]
    assert shape.shared_parameters == sum(mixers)
    assert shape.with_layers([widths.without(KINDS) for widths in shape.layers]).layer_parameters == sum(mixers)
    space = Space.of(ladders(shape, DatabaseConfig(levels=4, multiple_of=4)))
    assert [ladder.name.removeprefix("model.layers.") for ladder in space.ladders] == [
        "0.mlp", "1.self_attn", "1.mlp", "2.mlp", "3.self_attn", "3.mlp",
    ]  # fmt: skip
    asked = Target(TargetConfig(memory="70%", batch=3, context=8), None, shape, space, 4)
    limit = asked.budget(functools.partial(nominal_module, shape)).limits[0]
    outside = stock.num_parameters() - sum(p.numel() for p in stock.model.layers.parameters())
    assert limit.base == 4 * (outside + sum(mixers) + 3 * shape.states)


def test_packages_of_fast_kernels_are_left_out_where_they_refuse() -> None:
    """On a CPU, without numbers, and in float32."""

    def own(inputs: Tensor) -> Tensor:
        return inputs + 1

    @functools.wraps(own)
    def of_a_package(inputs: Tensor) -> Tensor:
        raise ValueError("wants a GPU, and no float32")

    assert where_it_can(of_a_package)(torch.ones(1)) == 2
    assert where_it_can(of_a_package)(torch.ones(1, device="meta")).is_meta
    stock = modeling(known_families()["qwen3_5_text"])._modeling
    assert sum(hasattr(getattr(chosen, "__wrapped__", None), "__wrapped__") for chosen in vars(stock).values()) == 4


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_masked_model(name: str, source, checkpoint, levels) -> None:
    assembler, database, tokens = Assembler(source(name), levels(name)), levels(name), pico.random_tokens(2, 16, seed=4)
    genome = genomes(database)["last"]
    models = [assembler.model(genome, pico.CPU), pico.zero_masked(checkpoint(name), database, genome)]
    found = [gradients(model, tokens) for model in models]
    for path, gradient in found[0].items():
        whole = found[1][path]
        if path.endswith("_proj.weight") and gradient.shape != whole.shape:
            ladder, level = at(database, genome, path)
            if not path.startswith(source(name).family.output(ladder.layer, ladder.kind)):
                continue  # rows in front; what they hand on is compared by what lies before them
            whole = whole[:, database.kept(ladder.name, level)]
        if gradient.shape == whole.shape:
            torch.testing.assert_close(gradient, whole, atol=1e-4, rtol=1e-4)


def gradients(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    cross_entropy(model(input_ids=tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def at(database: Database, genome: Sequence[int], path: str) -> tuple[Any, int]:
    """Ladder and level of the module that a parameter belongs to."""
    pairs = zip(database.ladders(), genome)
    return next((ladder, level) for ladder, level in pairs if path.startswith(f"{ladder.name}."))


def test_a_shared_norm_stays_with_the_last_module_that_shares_it(source, levels) -> None:
    shape, hidden = source("cohere2").shape, source("cohere2").shape.hidden
    widths = shape.layers[0]
    alone = [widths.without({kind}) for kind in ("attention", "mlp")]
    counts = [
        shape.with_layers([one]).layer_parameters for one in (*alone, widths, widths.without({"attention", "mlp"}))
    ]
    assert counts[0] + counts[1] == counts[2] + hidden
    assert counts[3] == 0


def test_what_is_normalized_over_all_heads_goes_as_a_whole(source, levels) -> None:
    tops = {ladder.top for ladder in levels("olmo2").ladders() if ladder.kind == "attention"}
    assert tops == {1}
    assert isinstance(source("olmo2"), ModelSource)


WRONG = {  # what a table could get wrong, and what computes it otherwise
    "granite": lambda family: replace(family, head=lambda config: (1.0, None)),
    "gemma2": lambda family: replace(family, head=lambda config: (1.0, None)),
    "olmo2": lambda family: replace(family, sites=known_families()["llama"].sites),
    "cohere2": lambda family: replace(family, sites=known_families()["llama"].sites),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_found_before_a_run_begins(name: str, source) -> None:
    opened = source(name)
    check_streamed(opened)
    wrong = SimpleNamespace(name=name, config=opened.config, family=WRONG[name](opened.family))
    with pytest.raises(RequestError, match=r"is not computed by transformers 5\.\d+.*as DarwinLM takes it"):
        check_streamed(wrong)  # type: ignore[arg-type]


def test_weights_that_are_read_otherwise_are_found_before_a_run_begins(checkpoint, monkeypatch) -> None:
    opened = ModelSource(str(checkpoint("phi3")))
    swapped = {name: tensor.flip(0) if "gate_up" in name else tensor for name, tensor in opened.layer(0).items()}
    monkeypatch.setattr(opened, "layer", lambda index, **_: swapped)
    with pytest.raises(RequestError, match="with its weights, after layer 0, its logits differ by"):
        check_streamed(opened)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "deepseek_v3"}, "its layers have experts"),
        ({"model_type": "gpt_oss"}, "its layers have experts"),
        ({"model_type": "qwen3_next", "num_experts": 512}, "its layers have experts"),
        ({"model_type": "qwen3_next"}, "its layers have experts, one of which every token takes"),
        ({"model_type": "olmo_hybrid"}, "some of its layers have linear attention"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            "multimodal.*'gemma3_text' .which it knows",
        ),
        ({"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}}, "multimodal.*'qwen3_5_text'"),
        ({"model_type": "gpt_neox"}, "its layers are not `model.layers`"),
        ({"model_type": "bert"}, ""),
        ({"model_type": "mamba"}, "convolutions"),
        ({"model_type": "lfm2"}, r"no self_attn\.o_proj"),
        ({"model_type": "phi"}, r"no self_attn\.o_proj"),
        ({"model_type": "chatglm", "auto_map": {"AutoConfig": "x"}}, "its code lies in its own repository"),
        ({"model_type": "nothing"}, "nor does transformers"),
    ],
)
def test_an_unknown_family_is_refused_with_what_stands_in_the_way(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=f"which DarwinLM does not know.*{said}.*It knows: apertus, arcee"):
        family_of(values, "some model")


def test_costs_behind_a_norm_are_those_of_what_the_module_puts_out(source, levels) -> None:
    """The slope of the KL as a module's normalized output fades; of its matrix there would be none."""
    opened, database, tokens = source("gemma2"), levels("gemma2"), pico.random_tokens(2, 12, seed=6)
    assembler, genome = Assembler(opened, database), genomes(database)["narrow"]
    stream = pico.stream(opened)
    dense = stream.final_hidden(tokens)
    moves = level_moves(assembler, stream, genome, tokens, torch.Generator().manual_seed(0), dense=dense)
    model, log_p = assembler.model(genome, pico.CPU), log_softmax(opened.head().logits(dense), -1)
    for ladder, found in zip(database.ladders(), moves):
        site = opened.family.site(ladder.kind)
        norm = model.get_submodule(f"model.layers.{ladder.layer}.{site.post_norm}")
        kls = []
        for step in (1e-2, -1e-2):
            hook = norm.register_forward_hook(lambda _, x, y, step=step: y * (1 - step))
            log_q = log_softmax(logits(model, tokens), -1)
            hook.remove()
            kls.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
        assert found[:, 0, ladder.top].mean().item() == pytest.approx((kls[0] - kls[1]) / 2e-2, rel=2e-2, abs=1e-4)
