"""Width and format in one search: candidates, costs, bytes and files against stock models with matrices of the package gguf."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.config import RunConfig, TargetConfig
from darwinlm.cost import rounded_bytes
from darwinlm.database.fronts import watched_fronts
from darwinlm.database.levels import Ladder
from darwinlm.database.rounded import RoundedLevels
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.export.formats import MIXED, formats_record
from darwinlm.export.gguf.file import header_bytes, write_gguf
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.formats.rounding import inverse_factor, rounded, rounded_in_order
from darwinlm.genome import Genome, Space
from darwinlm.measure.in_llamacpp import read_gguf
from darwinlm.models.attention import heads_of_columns, lay_out
from darwinlm.models.source import ModelSource
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.rounding import round_levels
from darwinlm.search.linearize import level_moves
from darwinlm.search.mutation import offspring
from darwinlm.search.propose import allocate
from darwinlm.target.budget import Budget, Limit, uniform
from darwinlm.target.target import target_of
from test_genome import space_of

gguf = pytest.importorskip("gguf")
FORMATS = ("q8_0", "q4_0")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
TOKENS = pico.random_tokens(4, 12)
CALIBRATION = pico.random_tokens(8, 32)
MATRICES = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Assembler]:
    """Family, and where it is no KV group the attention's unit -> its levels in all formats; embedding and head in q8_0."""

    @cache
    def make(name: str) -> Assembler:
        family, _, unit = name.partition(" by ")
        folder = tmp_path_factory.mktemp(f"bits_{family}")
        source = ModelSource(str(pico.make_checkpoint(folder / "dense", family, **WIDE)))
        levels = pico.make_database(
            folder / "levels", source, unit or "kv_group", levels=8 if unit else 4, multiple_of=32
        )
        assembler = Assembler(source, levels, formats=FORMATS, embedding_format="q8_0")
        round_levels(assembler, pico.stream(source), CALIBRATION, 4)
        return Assembler(source, levels, formats=FORMATS, embedding_format="q8_0")

    return make


def some_genome(space: Space, seed: int) -> Genome:
    rng = random.Random(seed)
    return tuple(rng.randint(ladder.present, ladder.top) for ladder in space.ladders)


def read_back(matrix: Tensor, name: str) -> Tensor:
    if not name:
        return matrix
    kind = gguf.GGMLQuantizationType[name.upper()]
    stored = gguf.quants.quantize(np.ascontiguousarray(matrix.detach().float().numpy()), kind)
    return torch.tensor(gguf.quants.dequantize(stored, kind)).view(matrix.shape)


def in_file(assembler: Assembler, module: str, name: str, format_: str) -> Tensor:
    """A matrix of the levels in formats, read back by the package alone."""
    held = load_file(assembler.database.folder / format_ / f"{module}.safetensors")[name]
    if held.dtype != torch.uint8:
        return held.float()
    return torch.from_numpy(gguf.quants.dequantize(held.numpy(), gguf.GGMLQuantizationType[format_.upper()]))


def places(assembler: Assembler, ladder: Ladder, level: int) -> Tensor:
    """Where the columns that a level keeps are in a file, with padding heads between them."""
    kept, whole = assembler.database.kept(ladder.name, level), assembler.source.shape.layers[ladder.layer]
    if ladder.kind == "mlp":
        return torch.arange(len(kept))
    queries = lay_out(heads_of_columns(kept.tolist(), 16), whole.heads, whole.kv_heads).queries
    return torch.cat([torch.arange(16 * i, 16 * i + 16) for i, head in enumerate(queries) if head is not None])


@torch.no_grad()
def truth(assembler: Assembler, genome: Genome) -> Any:
    """The stock dense model whose matrices are what a file holds, with zeros where columns are gone."""
    model = AutoModelForCausalLM.from_pretrained(assembler.source.folder, dtype=torch.float32).eval()
    for ladder, rung in zip(assembler.space.ladders, genome, strict=True):
        level, name, levels = ladder.level(rung), ladder.format(rung), assembler.database
        held = partial(in_file, assembler, ladder.name, format_=name)
        for path, matrix in model.get_submodule(ladder.name).named_modules():
            if not isinstance(matrix, torch.nn.Linear):
                continue
            if path not in ("o_proj", "down_proj"):
                if name:
                    matrix.weight.copy_(held(f"{ladder.name.split('.')[-1]}.{path}.weight"))
                continue
            kept = levels.kept(ladder.name, level)
            if rung == ladder.top or not (level or name):
                compact = matrix.weight[:, kept]
            elif name:
                compact = held(f"level.{level}")[:, places(assembler, ladder, level)]
            else:
                compact = levels.weight(ladder.name, level).float()
            matrix.weight.zero_()
            matrix.weight[:, kept] = compact
    embedding = model.get_input_embeddings()
    embedding.weight.copy_(read_back(embedding.weight, "q8_0"))
    if not model.config.tie_word_embeddings:
        model.lm_head.weight.copy_(read_back(model.lm_head.weight, "q8_0"))
    return model


@pytest.mark.parametrize("family", ["llama_gqa", "llama_gqa by query_head", "qwen3_tied", "phi3"])
def test_candidates_compute_what_an_engine_reads_back(family: str, made) -> None:
    assembler = made(family)
    for seed in range(4):
        genome = some_genome(assembler.space, seed)
        with torch.no_grad():
            wanted = truth(assembler, genome)(TOKENS, use_cache=False).logits
            found = assembler.model(genome, pico.CPU)(TOKENS, use_cache=False).logits
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
        hidden = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(seed))
        for layer in range(3):
            whole = assembler.stream(genome, pico.CPU, torch.float32).block(layer)
            masked = assembler.masked_block(genome, layer, pico.CPU, torch.float32)
            torch.testing.assert_close(whole(hidden), masked(hidden), rtol=0, atol=1e-4)
    dense = assembler.space.present
    assert torch.equal(dict(assembler.tensors(dense))["model.norm.weight"], assembler.source.final_norm())


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama_gqa by query_head", "phi3"])
def test_levels_in_formats_are_rounded_by_what_the_dense_model_feeds_them(family: str, made) -> None:
    assembler, fed = made(family), dict[str, Tensor]()
    model = AutoModelForCausalLM.from_pretrained(
        assembler.source.folder, dtype=torch.float32, attn_implementation="eager"
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, x, y, name=name: fed.update({name: x[0].flatten(0, 1).double()}))
    attention = model(CALIBRATION, output_attentions=True).attentions

    def rounded_by(ladder: Ladder, format_: str, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(found, exact, where the columns of both are in the file, inputs) of a matrix at all levels; values' are weighted."""
        exact, levels, x = model.get_submodule(name).weight, assembler.database, fed[name]
        held = partial(in_file, assembler, ladder.name, format_=format_)
        if not name.endswith(("o_proj", "down_proj")):
            whole, at = (
                held(f"{name.removeprefix(f'model.layers.{ladder.layer}.')}.weight"),
                torch.arange(exact.shape[1]),
            )
            values = {"v_proj": 0, "qkv_proj": 128 + 32}.get(name.rpartition(".")[2], len(exact))
            looked_at = attention[ladder.layer].square().sum((1, 2)).flatten().double().sqrt()
            for rows, own in ((slice(values), x), (slice(values, None), looked_at[:, None] * x)):
                if len(exact[rows]):
                    yield whole[rows], exact[rows], at, own
            return
        for level in range(ladder.level(ladder.top)):
            kept = levels.kept(ladder.name, level)
            matrix = levels.weight(ladder.name, level) if level else exact
            yield held(f"level.{level}"), matrix, places(assembler, ladder, level), x[:, kept]

    seen = 0
    for ladder, format_, name in itertools.product(assembler.space.ladders, FORMATS, list(fed)):
        for found, exact, at, x in rounded_by(ladder, format_, name) if name.startswith(f"{ladder.name}.") else ():
            padded = torch.zeros(found.shape).index_copy_(1, at, exact)
            assert found.count_nonzero() == found[:, at].count_nonzero()  # padding stays zero
            both = (found, rounded(padded, format_))
            errors = [((one[:, at] - exact).double() @ x.T).square().sum() for one in both]
            assert errors[0] < errors[1] if found.shape[1] % 32 == 0 else torch.equal(*both)
            if found.shape == exact.shape:
                hessian = x.T @ x
                every = x if name.endswith(("q_proj", "k_proj", "v_proj", "qkv_proj")) else fed[name]
                hessian += 1e-2 * every.square().sum(0).mean() * torch.eye(len(hessian))
                alike = rounded_in_order(exact, inverse_factor(hessian), format_)
                assert (found - alike).abs().gt(1e-6).double().mean() < 0.03
            seen += found.shape != exact.shape
    assert (seen > 0) == family.endswith("query_head")


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3_text", "cohere2", "cohere", "olmo2", "glm", "apertus", "exaone4", "qwen3_5_text"]
)
def test_fronts_are_watched_as_the_stock_attention_looks(family: str, tmp_path) -> None:
    source, fed, told = (
        ModelSource(str(pico.make_checkpoint(tmp_path, family))),
        dict[str, Tensor](),
        dict[int, Tensor](),
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    fronts = {site.kind: next(cut.matrix for cut in site.cuts if not cut.norm) for site in source.family.sites}
    for index, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if name in fronts.values():
                module.register_forward_hook(lambda _, x, y, key=f"{index}.{name}": fed.update({key: x[0].double()}))
            if name == source.family.site("attention").module:
                module.register_forward_hook(lambda _, x, y, index=index: told.update({index: y[1].double()}))
    model(TOKENS, use_cache=False)
    stream = pico.stream(source)
    hidden = stream.embed(TOKENS)
    for index, block in enumerate(stream.blocks()):
        as_before = block.decoder.config._attn_implementation
        with ExitStack() as watching:
            found = {kind: watching.enter_context(watched_fronts(block, kind, TOKENS.numel())) for kind in block.kinds}
            stream.forward(block, hidden, 2)
        assert block.decoder.config._attn_implementation == as_before
        for kind, moments in found.items():
            x = fed[f"{index}.{fronts[kind]}"]
            wanted = [x]
            if kind == "attention":
                wanted.append(x * told[index].square().sum((1, 2)).sqrt()[..., None])
            wanted = torch.stack([(y := each.flatten(0, 1)).T @ y for each in wanted]) / TOKENS.numel()
            torch.testing.assert_close(moments.double(), wanted, rtol=1e-4, atol=1e-5)
    assert told


def test_a_killed_rounding_goes_on_to_the_same_bytes_and_damage_is_told(made, tmp_path, monkeypatch) -> None:
    whole = made("qwen3_tied")
    source, levels, written, write = whole.source, whole.database, list[str](), RoundedLevels.write
    again = False
    shutil.copytree(levels.folder, tmp_path / "database", ignore=shutil.ignore_patterns("rounded.json", *FORMATS))

    def assembler() -> Assembler:
        return Assembler(source, Database.open(tmp_path / "database"), formats=FORMATS)

    def killed(self: RoundedLevels, ladder: Ladder, format_: str, tensors: Any) -> dict[str, str]:
        if len(written) == 6 and not again:
            raise KeyboardInterrupt
        written.append(f"{format_}/{ladder.name}.safetensors")
        return write(self, ladder, format_, tensors)

    monkeypatch.setattr(RoundedLevels, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        round_levels(assembler(), pico.stream(source), CALIBRATION, 4)
    written, again = [], True
    round_levels(assembler(), pico.stream(source), CALIBRATION, 4)
    assert len(written) == 8  # a block's are admitted together
    assert (tmp_path / "database/rounded.json").read_bytes() == (levels.folder / "rounded.json").read_bytes()
    file = tmp_path / "database/q4_0/model.layers.1.mlp.safetensors"
    assert file.read_bytes() == (levels.folder / "q4_0/model.layers.1.mlp.safetensors").read_bytes()
    assert sum(path.stat().st_size for path in (tmp_path / "database").glob("q*/*")) == pytest.approx(
        rounded_bytes(source.shape, levels.ladders(), [*FORMATS, "q8_0"]), rel=0.1
    )
    module, record = "model.layers.0.mlp", json.loads((tmp_path / "database/manifest.json").read_text())
    next(one for one in record["modules"] if one["ladder"]["name"] == module)["sha256"] = "another"
    (tmp_path / "database/manifest.json").write_text(json.dumps(record))
    other = Database.open(tmp_path / "database")  # a module that was made anew, and otherwise
    missing = [(l.name, f) for l in other.ladders() for f in FORMATS if not RoundedLevels(other).holds(l, f)]
    assert missing == [(module, format_) for format_ in FORMATS]
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    genome = tuple(ladder.rung(1, "q4_0") for ladder in whole.space.ladders)
    shutil.copy(levels.folder / "manifest.json", tmp_path / "database")
    with pytest.raises(DamagedFileError, match=r"model.layers.1.mlp.safetensors' is missing or damaged.*Remove it"):
        assembler().model(genome, pico.CPU)
    with pytest.raises(DamagedFileError, match=r"'[^']*q4_0/model.layers.1.mlp.safetensors'. Remove it"):
        darwinlm.check_database(str(tmp_path))


@pytest.mark.parametrize("family", ["llama_gqa", "phi3"])
def test_the_first_order_of_a_format_is_the_derivative_of_the_kl(family: str, made) -> None:
    """Of a module whose output goes a part of the way to what it is at another rung, on the same inputs."""
    assembler, step = made(family), 2e-3
    genome = some_genome(assembler.space, 8)
    stream = pico.stream(assembler.source)
    dense = AutoModelForCausalLM.from_pretrained(assembler.source.folder, dtype=torch.float64).eval()
    moves = level_moves(assembler, stream, genome, TOKENS, torch.Generator(), dense=stream.final_hidden(TOKENS))
    for module, ladder in enumerate(assembler.space.ladders):
        for rung in random.Random(module).sample(range(ladder.top + 1), 3):
            moved = (*genome[:module], rung, *genome[module + 1 :])
            between, end = (truth(assembler, each).double() for each in (genome, moved))
            there, part = end.get_submodule(ladder.name), [0.0]

            def mixed(_: Any, args: Any, kwargs: Any, output: Any, there: Any = there, part: Any = part) -> Any:
                goal = there(*args, **kwargs)
                if isinstance(output, tuple):
                    return (output[0] + part[0] * (goal[0] - output[0]), *output[1:])
                return output + part[0] * (goal - output)

            between.get_submodule(ladder.name).register_forward_hook(mixed, with_kwargs=True)
            kls = []
            for part[0] in (step, -step):
                with torch.no_grad():
                    log_p, log_q = (model(TOKENS, use_cache=False).logits.log_softmax(-1) for model in (dense, between))
                kls.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
            slope = (kls[0] - kls[1]) / (2 * step)
            assert moves[module][:, 0, rung].mean().item() == pytest.approx(slope, rel=2e-2, abs=2e-5)


def test_the_refit_rounds_matrices_in_front_by_what_the_pruned_model_feeds_them(made) -> None:
    assembler = made("llama_gqa")
    space, stream = assembler.space, pico.stream(assembler.source)
    genome, tokens = tuple(ladder.rung(0, "q4_0") for ladder in space.ladders), pico.random_tokens(8, 24, seed=9)
    refits, pruned = Refits(None, {}), assembler.stream(genome, pico.CPU, torch.float32)
    refit_blocks(refits, stream, pruned, None, tokens, 4, in_format=partial(assembler.in_format, genome))
    model, fed = truth(assembler, genome), list[Tensor]()
    model.set_attn_implementation("eager")
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _, x, y: fed.append(x[0]))
    with torch.no_grad():
        attention = model(tokens[:7], output_attentions=True).attentions[0]  # the eighth is checked
    looked_at = attention.square().sum((1, 2)).flatten().double().sqrt()
    for name, weights in (("q_proj", torch.ones_like(looked_at)), ("v_proj", looked_at)):
        x = fed[0].flatten(0, 1).double() * weights[:, None]
        hessian = x.T @ x
        hessian += 1e-2 * hessian.diagonal().mean() * torch.eye(64)
        matrix = assembler.source.layer(0)[f"self_attn.{name}.weight"]
        found = refits.read(0)[f"self_attn.{name}.weight"]
        assert (found - rounded_in_order(matrix, inverse_factor(hessian), "q4_0")).abs().gt(1e-6).double().mean() < 0.02
        errors = [((one - matrix).double() @ x.T).square().sum() for one in (found, read_back(matrix, "q4_0"))]
        assert errors[0] < errors[1]
    assert {name for name in refits.read(2) if name.endswith("proj.weight")} == {
        f"{module}.{part}_proj.weight" for module, parts in MATRICES.items() for part in parts
    }


@pytest.mark.parametrize("family", ["llama_gqa", "qwen3_tied"])
def test_budgets_count_the_bytes_of_the_file_and_it_holds_the_numbers_of_the_checkpoint(family, made, tmp_path) -> None:
    assembler = made(family)
    source, space = assembler.source, assembler.space
    asked = TargetConfig(memory="50%", formats=list(FORMATS), embedding_format="q8_0", context=0)
    config, device = RunConfig(target=asked), torch.device("cpu")
    target = target_of(config, source.shape, space, 4, device, torch.float32, header_bytes(source))
    budget = target.budget(assembler.module_widths)
    for seed in range(4):
        genome, folder = some_genome(space, seed), tmp_path / str(seed)
        record = {"formats": formats_record(source, space.formats_of(genome), "q8_0", "q4_0")}
        export_checkpoint(assembler, genome, folder, {}, record)
        write_gguf(ModelSource(str(folder)), folder.with_suffix(".gguf"), MIXED)
        size = folder.with_suffix(".gguf").stat().st_size
        assert size <= budget.limits[0].spent(genome) <= size + 1024 + 32 * 60
        held = {
            t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(folder.with_suffix(".gguf")).tensors
        }
        stored = load_file(folder / "model.safetensors")
        assert np.array_equal(held["token_embd.weight"], stored["model.embed_tokens.weight"].numpy())
        for layer in range(3):
            for ours, theirs in (
                ("self_attn.o_proj", "attn_output"),
                ("mlp.down_proj", "ffn_down"),
                ("mlp.up_proj", "ffn_up"),
            ):
                name = f"model.layers.{layer}.{ours}.weight"
                if name in stored:
                    assert np.array_equal(held[f"blk.{layer}.{theirs}.weight"], stored[name].numpy())


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_allocations_are_exact_and_full_where_bytes_and_costs_are_ordered_otherwise(seed: int) -> None:
    rng, bits = random.Random(seed), (16, 8.5, 4.5)
    space = Space.of(space_of([2, 2], [3]).ladders, FORMATS)
    sizes, costs = [], []
    for ladder in space.ladders:
        levels = ladder.level(ladder.top)
        scale, worse = rng.randint(1, 9), sorted(rng.random() for _ in range(levels))
        coarse = [0.0, *sorted(rng.random() / 2 for _ in range(2))]
        sizes.append(tuple(int(scale * (levels - l) * b * 10) for l in range(levels) for b in bits) + (0,))
        costs.append([worse[l] + c * rng.choice((1, 1)) for l in range(levels) for c in coarse] + [2.0])
    limit = Limit("memory", rng.randint(0, sum(row[0] for row in sizes)), 0, tuple(sizes))
    budget = Budget((limit,), space.present, formats=len(bits))
    every = [g for g in itertools.product(*(range(l.top + 1) for l in space.ladders)) if budget.within(g)]
    total = lambda genome: sum(row[rung] for row, rung in zip(costs, genome))  # noqa: E731
    found = allocate(costs, budget)
    assert found is not None
    assert total(found) == pytest.approx(min(map(total, every)), abs=1e-9)
    for genome in (found, uniform(budget, rng), *offspring(found, 4, budget, 3, rng)):
        assert budget.within(genome)
        assert budget.is_full(genome)
        for place, ladder in enumerate(
            space.ladders
        ):  # neither a wider module in this format fits, nor a larger format
            level, name = ladder.level(genome[place]), ladder.format(genome[place])
            finer = [ladder.rung(level, name) - 1] if name else []
            wider = [ladder.rung(level - 1, name)] if 0 < level < ladder.level(ladder.top) else []
            assert not any(budget.within((*genome[:place], rung, *genome[place + 1 :])) for rung in finer + wider)


def test_a_run_keeps_to_the_bytes_and_llama_cpp_computes_what_was_scored(text, tmp_path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", "llama_gqa", **WIDE)
    settings_ = {**pico.RUN, "search": {"start_rounds": 2, "start_tokens": 256}, "refit": {"tokens": 512}}
    settings_ |= {
        "database": {"levels": 4, "multiple_of": 32},
        "target": {"memory": "115KB", "formats": [*FORMATS], "embedding_format": "q8_0", "context": 0},
    }
    run = tmp_path / "run"
    summary = darwinlm.prune(str(folder), data=str(text), output=str(run), **settings_).summary
    genome = json.loads((run / "genome.json").read_text())
    assert set(genome["formats"].values()) <= set(FORMATS)
    assert genome["formats"]
    file = darwinlm.export_checkpoint(output=str(run), format="gguf").forms[1].path
    limit = summary["achieved"]["limits"]["memory"]
    assert file.stat().st_size <= limit["got"] <= limit["asked"] == 115_000
    assert read_gguf(str(file)).kind in FORMATS
    stored = load_file(run / "model/model.safetensors")
    for name, matrix in stored.items():  # those of the refit, too
        if matrix.ndim == 2 and (kind := genome["formats"].get(name.rpartition(".weight")[0].rpartition(".")[0])):
            assert torch.equal(read_back(matrix, kind), matrix)
    refitted = [name for path in (run / "refit").glob("layer-*.safetensors") for name in load_file(path)]
    assert {"mlp.up_proj.weight", "mlp.down_proj.weight"} & {*refitted}
    assert "q8_0 (embedding and head)" in (run / "model/README.md").read_text()
    from llama_cpp import Engine

    model = AutoModelForCausalLM.from_pretrained(run / "model", trust_remote_code=True, dtype=torch.float64).eval()
    tokens = pico.random_tokens(1, 24, seed=3)[0].tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
    told = Engine(file).log_probabilities(tokens, pico.VOCABULARY).double()
    assert float((wanted.exp() * (wanted - told)).sum()) < 1e-2  # llama.cpp rounds activations to 8 bits


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"level": 2.0}, "target.formats needs target.memory"),
        ({"memory": "50%", "shape": "stock"}, "target.shape is stock"),
        ({"memory": "1KB", "context": 0}, "cannot be met"),
        ({"memory": "50%", "formats": ["q4_1", "q9"]}, "a list of q8_0, q6_k, .* or w4a16_32"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(target: dict[str, Any], said: str, text: Path, tmp_path: Path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", "llama_gqa", **WIDE)
    asked = {**pico.RUN, "search": {}, "target": {"formats": ["q4_0"], **target}}
    with pytest.raises(RequestError, match=said):
        darwinlm.prune(str(folder), data=str(text), output=str(tmp_path / "run"), **asked)
