"""A candidate computes what the zero-masked dense model does, for every family and attention unit; it trains and generates."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

import pico
from darwinlm.assemble import Assembler
from darwinlm.cost import nominal_widths
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome
from darwinlm.losses import next_token_loss
from darwinlm.models.head import head_of
from darwinlm.models.source import ModelSource

ABSENT = {
    "first attention": [(0, "attention")],
    "middle MLP": [(1, "mlp")],
    "last attention": [(2, "attention")],
    "last MLP": [(2, "mlp")],
    "first and last layer": [(0, "attention"), (0, "mlp"), (2, "attention"), (2, "mlp")],
    "every attention": [(0, "attention"), (1, "attention"), (2, "attention")],
    "every MLP": [(0, "mlp"), (1, "mlp"), (2, "mlp")],
    "everything": [(layer, kind) for layer in range(3) for kind in ("attention", "mlp")],
}


def genomes(database: Database) -> list[Genome]:
    """Random ones, and one for each set of absent modules with the others half pruned."""
    ladders = database.ladders()
    half = [tuple(l.top if (l.layer, l.kind) in absent else l.top // 2 for l in ladders) for absent in ABSENT.values()]
    return [pico.random_genome(database, seed) for seed in range(4)] + half


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens, use_cache=False).logits


def absent_genome(database: Database, absent: str) -> Genome:
    return genomes(database)[4 + list(ABSENT).index(absent)]


@pytest.mark.parametrize(("family", "unit"), pico.FAMILIES_AND_UNITS)
def test_logits_and_size_of_random_genomes(family: str, unit: str, checkpoint, source, database) -> None:
    levels = database(family, unit)
    assembler = Assembler(source(family), levels)
    tokens = pico.random_tokens(2, 24, seed=1)
    for genome in genomes(levels):
        model = assembler.model(genome, pico.CPU)
        truth = pico.zero_masked(checkpoint(family), levels, genome)
        torch.testing.assert_close(logits(model, tokens), logits(truth, tokens), rtol=0, atol=1e-4)
        shape = assembler.shape(genome)
        assert model.num_parameters() == shape.parameters
        if unit != "query_head":  # else it is not known beforehand which KV heads leave
            assert nominal_widths(assembler.source.shape, levels.ladders(), genome) == list(shape.layers)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_all_dense_genome_is_the_dense_model(family: str, checkpoint, source, database) -> None:
    levels = database(family, "auto")
    dense = (0,) * len(levels.modules)
    assembler = Assembler(source(family), levels)
    tokens = pico.random_tokens(2, 24)
    stock = pico.zero_masked(checkpoint(family), levels, dense)
    model = assembler.model(dense, pico.CPU)
    torch.testing.assert_close(logits(model, tokens), logits(stock, tokens), rtol=0, atol=1e-5)
    assert assembler.shape(dense) == assembler.source.shape
    assert set(dict(assembler.tensors(dense))) == set(assembler.source.files)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ],
)
def test_sliding_windows_survive(family: str, overrides: dict, tmp_path: Path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", family, **overrides)
    source = ModelSource(str(folder))
    levels = pico.make_database(tmp_path / "database", source)
    tokens = pico.random_tokens(2, 24)
    for genome in genomes(levels):
        model = Assembler(source, levels).model(genome, pico.CPU)
        truth = pico.zero_masked(folder, levels, genome)
        torch.testing.assert_close(logits(model, tokens), logits(truth, tokens), rtol=0, atol=1e-4)


def test_a_bfloat16_checkpoint_stays_bfloat16(tmp_path: Path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", "qwen3", dtype=torch.bfloat16)
    source = ModelSource(str(folder))
    levels = pico.make_database(tmp_path / "database", source)
    assembler, tokens = Assembler(source, levels), pico.random_tokens(2, 24)
    for genome in genomes(levels)[:4]:
        assert {tensor.dtype for _, tensor in assembler.tensors(genome)} == {torch.bfloat16}
        truth = pico.zero_masked(folder, levels, genome)
        torch.testing.assert_close(
            logits(assembler.model(genome, pico.CPU), tokens), logits(truth, tokens), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize(
    ("unit", "absent"),
    [("kv_group", "first and last layer"), ("balanced", "last MLP"), ("query_head", "first attention")],
)
def test_a_pruned_model_can_be_pruned_again(unit: str, absent: str, tmp_path: Path, source, database) -> None:
    """Gradual pruning: the truth is the pruned model itself with more of its columns at zero."""
    first = Assembler(source("llama_gqa"), database("llama_gqa", unit))
    genome = absent_genome(first.database, absent)
    (tmp_path / "config.json").write_text(first.config(genome).to_json_string())
    save_file(dict(first.tensors(genome)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = ModelSource(str(tmp_path))
    assert again.shape == first.shape(genome)
    tokens, pruned = pico.random_tokens(2, 24), first.model(genome, pico.CPU)
    with torch.no_grad():
        hidden = pruned.model(tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(pico.stream(again).final_hidden(tokens), hidden, rtol=0, atol=2e-5)
    levels = pico.make_database(tmp_path / "database", again, unit)
    for seed in range(3):
        further = pico.random_genome(levels, seed)
        truth = pico.mask(first.model(genome, pico.CPU), levels, further)
        model = Assembler(again, levels).model(further, pico.CPU)
        torch.testing.assert_close(logits(model, tokens), logits(truth, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("unit", pico.UNITS)
def test_removed_heads_are_really_gone(unit: str, source, database) -> None:
    assembler = Assembler(source("qwen2"), database("qwen2", unit))
    size = assembler.source.shape.head_dim
    for genome in genomes(assembler.database):
        model = assembler.model(genome, pico.CPU)
        for name, level in assembler.space.named(genome).items():
            if not name.endswith("self_attn") or level == assembler.database.modules[name].ladder.top:
                continue
            kept = {column // (2 * size) for column in assembler.database.kept(name, level).tolist()}  # a KV head's two
            attention, dense = model.get_submodule(name), assembler.source.module(f"{name}.")
            for matrix in ("k_proj", "v_proj"):
                for suffix in ("weight", "bias"):
                    heads = getattr(attention, matrix).get_parameter(suffix).unflatten(0, (-1, size))
                    all_heads = dense[f"{matrix}.{suffix}"].unflatten(0, (-1, size))
                    there = {k for k in range(4) if any(torch.equal(all_heads[k], head) for head in heads)}
                    assert there == kept


def test_the_attention_implementation_reaches_every_layer(source, database) -> None:
    assembler = Assembler(source("qwen2"), database("qwen2", "query_head"))
    model, tokens = (
        assembler.model(absent_genome(assembler.database, "first attention"), pico.CPU),
        pico.random_tokens(2, 24),
    )
    before = logits(model, tokens)
    model.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in model.model.layers[1:]} == {"eager"}
    torch.testing.assert_close(logits(model, tokens), before, rtol=0, atol=1e-4)


def test_a_model_owns_its_weights(source, database) -> None:
    assembler = Assembler(source("qwen3"), database("qwen3", "kv_group"))
    genome = pico.random_genome(assembler.database, 0)
    model = assembler.model(genome, pico.CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, parameter in assembler.model(genome, pico.CPU).named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's table of mapped files")
def test_dense_weights_are_the_file_itself(source, database) -> None:
    """So all ranks of a machine share them; what a model trains is its own."""
    dense = source("qwen3")
    assembler = Assembler(dense, database("qwen3", "kv_group"))
    tensors = dict(assembler.tensors((0,) * len(assembler.space.ladders)))
    mapped = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("model.safetensors")
    ]

    def lies_in_the_file(tensor: Tensor) -> bool:
        return any(start <= tensor.data_ptr() < end for start, end in mapped)

    assert all(map(lies_in_the_file, tensors.values()))
    assert not any(map(lies_in_the_file, assembler.model((0,) * len(assembler.space.ladders), pico.CPU).parameters()))


@pytest.mark.parametrize("change", ["replaced", "written to", "gone"])
def test_a_checkpoint_that_changes_under_its_readers_is_refused(change: str, tmp_path: Path, source, database) -> None:
    folder = tmp_path / "model"
    shutil.copytree(source("qwen3").folder, folder)
    assembler = Assembler(ModelSource(str(folder)), database("qwen3", "kv_group"))
    genome = pico.random_genome(assembler.database, 0)
    assembler.model(genome, pico.CPU)
    (file,) = folder.glob("*.safetensors")
    data = file.read_bytes()
    if change == "written to":
        file.write_bytes(data)
        os.utime(file, (1, 1))
    else:
        file.rename(tmp_path / "old")
    if change == "replaced":
        file.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"changed while it was in use|is missing"):
        assembler.model(genome, pico.CPU)


@pytest.mark.parametrize("family", ["llama_tied", "llama_bias", "qwen3"])
@pytest.mark.parametrize("absent", ["first attention", "middle MLP", "first and last layer"])
def test_training_moves_every_weight_and_keeps_shapes_and_ties(family: str, absent: str, source, database) -> None:
    assembler = Assembler(source(family), database(family, "kv_group"))
    model = assembler.model(absent_genome(assembler.database, absent), pico.CPU).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = pico.random_tokens(2, 24)
    losses = []
    for _ in range(5):
        loss = next_token_loss(model.model(tokens, use_cache=False).last_hidden_state, head_of(model), tokens)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.shape == before[name].shape
        assert not torch.equal(parameter, before[name]), name
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == assembler.source.shape.tied


# The name that is not deprecated is younger than the oldest transformers that we support.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("absent", ["first attention", "last attention", "first and last layer"])
def test_gradient_checkpointing_gives_equal_gradients(absent: str, source, database) -> None:
    assembler = Assembler(source("llama_gqa"), database("llama_gqa", "query_head"))
    tokens = pico.random_tokens(2, 16)
    gradients = []
    for recompute in (False, True):
        model = assembler.model(absent_genome(assembler.database, absent), pico.CPU).train()
        if recompute:
            model.gradient_checkpointing_enable()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("family", ["llama_mha", "qwen2", "qwen3_bias", "mistral"])
@pytest.mark.parametrize("absent", ["first attention", "last MLP", "first and last layer", "every attention"])
def test_generation_equals_the_zero_masked_model(family: str, absent: str, checkpoint, source, database) -> None:
    levels = database(family, "auto")
    genome = absent_genome(levels, absent)
    model = Assembler(source(family), levels).model(genome, pico.CPU)
    truth = pico.zero_masked(checkpoint(family), levels, genome)
    tokens, padding = pico.random_tokens(2, 9), 4
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0  # left-padded
    options = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=pico.BYTES, pad_token_id=0)
    expected = truth.generate(tokens, attention_mask=mask, generation_config=options)
    for use_cache in (False, True):
        found = model.generate(tokens, attention_mask=mask, generation_config=options, use_cache=use_cache)
        assert torch.equal(found, expected)
    alone = model.generate(tokens[1:, padding:], attention_mask=mask[1:, padding:], generation_config=options)
    assert torch.equal(alone[0], expected[1, padding:])
