"""The stock shape: its budgets against all genomes of the shape, and its checkpoints in stock transformers."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.config import DatabaseConfig, TargetConfig, as_flags, described, target_identity
from darwinlm.cost import nominal_module
from darwinlm.database.levels import ladders
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.genome import Genome, Space
from darwinlm.models.source import ModelSource
from darwinlm.search.mutation import offspring
from darwinlm.search.propose import FORBIDDEN, Estimate, allocate, proposals
from darwinlm.target.budget import Limit, uniform
from darwinlm.target.stock import StockBudget, layers_of
from darwinlm.target.target import Target
from test_families import NAMES, logits, padded
from test_genome import space_of
from training import BLOCKS, TRAIN

SEEDS = st.integers(0, 2**32)
Place = tuple[Space, StockBudget, random.Random]


@st.composite
def stock_budgets(draw: st.DrawFn) -> Place:
    """Layers alike, one to three limits that one narrow layer keeps, closed widths, and mostly a larger model around it."""
    count, tops, rng = draw(st.integers(1, 4)), draw(st.tuples(*[st.integers(1, 4)] * 2)), random.Random(draw(SEEDS))
    space = space_of(attention=[tops[0]] * count, mlp=[tops[1]] * count)
    opened = tuple((*sorted(rng.sample(range(top - 1), rng.randint(0, top - 1))), top - 1) for top in tops)
    limits = []
    for place in range(draw(st.integers(1, 3))):
        rows = {l.kind: (*sorted((rng.randrange(50) for _ in range(l.top)), reverse=True), 0) for l in space.ladders}
        costs, base = tuple(rows[l.kind] for l in space.ladders), rng.choice((0, 17))
        least = sum(row[-2] for row in rows.values())
        limits.append(Limit(str(place), base + rng.randint(least, sum(map(max, costs)) + 1), base, costs))
    around = rng.choice(every_shape(space, opened)) if draw(st.booleans()) else space.present
    return space, StockBudget(tuple(limits), around, layers_of(space), opened), rng


def every_shape(space: Space, opened: tuple[tuple[int, ...], ...]) -> list[Genome]:
    """All genomes of the shape: some layers, and in them one open level of each kind."""
    count = len(space.ladders) // 2
    subsets = [s for n in range(1, count + 1) for s in itertools.combinations(range(count), n)]
    found = []
    for attention, mlp in itertools.product(*opened):
        at = {"attention": attention, "mlp": mlp}
        found += [tuple(at[l.kind] if l.layer in kept else l.top for l in space.ladders) for kept in subsets]
    return found


def allowed(place: Place) -> set[Genome]:
    space, budget, _ = place
    spent = lambda limit, genome: limit.base + sum(row[level] for row, level in zip(limit.costs, genome))  # noqa: E731
    return {
        genome
        for genome in every_shape(space, budget.open)
        if all(low <= level for low, level in zip(budget.lowest, genome))
        and all(spent(limit, genome) <= limit.most for limit in budget.limits)
    }


def wider(place: Place, genome: Genome) -> list[Genome]:
    """By what it means: a layer more at the same widths, or the same layers with one kind at its next open level."""
    space, budget, _ = place

    def parts(genome: Genome) -> tuple[set[int], tuple[int, ...]]:
        kept = {l.layer for l, level in zip(space.ladders, genome) if level < l.top}
        return kept, tuple(genome[2 * min(kept) + kind] for kind in (0, 1))

    (kept, levels), found = parts(genome), []
    for other in every_shape(space, budget.open):
        theirs, at = parts(other)
        if any(low > level for low, level in zip(budget.lowest, other)):
            continue
        more = at == levels and len(theirs) == len(kept) + 1 and kept < theirs
        steps = [sum(new <= level < old for level in opened) for opened, old, new in zip(budget.open, levels, at)]
        if more or (theirs == kept and sorted(steps) == [0, 1] and all(n <= o for o, n in zip(levels, at))):
            found.append(other)
    return found


def full(place: Place) -> set[Genome]:
    within = allowed(place)
    return {genome for genome in within if not within & set(wider(place, genome))}


@given(stock_budgets(), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=150)
def test_starts_repairs_and_children_are_full_models_of_the_shape(place: Place, count: int, switches: int) -> None:
    _, budget, rng = place
    truth = full(place)
    assert uniform(budget, rng) in truth
    parent = budget.repair(rng.choice(every_shape_above(place)), rng.choice)
    assert parent in truth
    children = offspring(parent, count, budget, switches, rng)
    assert set(children) <= truth - {parent}
    assert len(set(children)) == len(children)


def every_shape_above(place: Place) -> list[Genome]:
    space, budget, _ = place
    shapes = every_shape(space, budget.open)
    return [g for g in shapes if all(low <= level for low, level in zip(budget.lowest, g))]


@given(stock_budgets(), st.booleans())
@settings(max_examples=150)
def test_the_allocation_is_the_cheapest_of_all_full_models(place: Place, falling: bool) -> None:
    space, budget, rng = place
    rows = [[rng.gauss(0, 1) for _ in range(ladder.top + 1)] for ladder in space.ladders]
    costs = [sorted(row) if falling else row for row in rows]
    total = lambda genome: sum(row[level] for row, level in zip(costs, genome))  # noqa: E731
    found, within = allocate(costs, budget), allowed(place)
    assert found is not None
    assert found in full(place)
    best = min(map(total, within if falling else full(place)))
    assert total(found) == pytest.approx(best, abs=1e-9)
    others = proposals(Estimate(found, 1.0, costs, costs), budget)
    assert found not in others
    assert set(others) <= full(place)


def test_layers_that_must_stay_stay_and_widths_that_must_not_be_are_not() -> None:
    space = space_of(attention=[1] * 3, mlp=[2] * 3)
    costs = tuple((1, 0) if l.kind == "attention" else (2, 1, 0) for l in space.ladders)
    budget = StockBudget((Limit("one", 4, 0, costs),), space.present, layers_of(space), ((0,), (0, 1)))
    cheap_last = [[0.0, 5.0 - l.layer] if l.kind == "attention" else [0.0, 0.1, 0.2] for l in space.ladders]
    assert allocate(cheap_last, budget) == (0, 1, 0, 1, 1, 2)
    cheap_last[4][1] = FORBIDDEN
    assert allocate(cheap_last, budget) == (0, 1, 1, 2, 0, 1)
    for i in (1, 3, 5):
        cheap_last[i][1] = FORBIDDEN
    assert allocate(cheap_last, budget) == (1, 2, 1, 2, 0, 0)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "linear_attention" not in pico.EVERY[name].get("layer_types", ())]
)
def test_a_stock_checkpoint_is_the_masked_model_in_every_family(name: str, source, checkpoint, tmp_path) -> None:
    """With a layer in the middle gone and the narrowest widths that the stock class takes, by stock code alone."""
    database = pico.make_database(tmp_path / "database", source(name))
    assembler, tokens = Assembler(source(name), database), pico.random_tokens(2, 20, seed=3)
    asked = Target(TargetConfig(parameters="60%", shape="stock"), None, source(name).shape, assembler.space, 4)
    budget = asked.budget(assembler.module_widths)
    assert isinstance(budget, StockBudget)
    genome = budget.genome([levels[-1] for levels in budget.open], [0, 2])
    export_checkpoint(assembler, genome, tmp_path / "model", {}, {}, stock=True)

    truth = pico.zero_masked(checkpoint(name), database, genome)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert type(ours) is type(truth)
    assert ours.config.num_hidden_layers == 2
    torch.testing.assert_close(logits(ours, tokens), logits(truth, tokens), atol=1e-4, rtol=1e-4)
    assert ours.num_parameters() == assembler.shape(genome).parameters
    shared = len(source(name).family.shared_norms) * source(name).shape.hidden  # counts in any case
    assert budget.limits[0].spent(genome) == ours.num_parameters() + shared
    written = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(ours.generate(**padded(), **written), truth.generate(**padded(), **written))
    plain = json.loads((tmp_path / "model/config.json").read_text())
    assert plain["architectures"] == [type(truth).__name__]
    assert plain.keys() <= json.loads((checkpoint(name) / "config.json").read_text()).keys() | {"head_dim"}
    assert not list((tmp_path / "model").glob("*.py"))
    assert "trust_remote_code" not in (tmp_path / "model/README.md").read_text()


def test_what_the_stock_class_cannot_say_is_not_offered(source, tmp_path) -> None:
    """Llama's configuration takes divisors of the hidden size alone, Qwen2's has no size of a head."""
    for family, heads in (("llama_mha", {4, 2, 1}), ("qwen2", {8}), ("mistral", {8, 4})):
        space = Space(
            tuple(ladders(source(family).shape, DatabaseConfig(levels=8, multiple_of=8, attention_unit="kv_group")))
        )
        asked = Target(TargetConfig(parameters="60%", shape="stock"), None, source(family).shape, space, 4)
        budget = asked.budget(nominal(source(family)))
        assert isinstance(budget, StockBudget)
        widths = {nominal(source(family))(space.ladders[0], level).heads for level in budget.open[0]}
        assert widths == heads


def nominal(source: ModelSource) -> Any:
    return lambda ladder, level: nominal_module(source.shape, ladder, level)


@pytest.mark.parametrize(
    ("family", "unit", "genome", "said"),
    [
        ("llama_gqa", "query_head", None, "database.attention_unit query_head.*Choose kv_group or balanced"),
        ("llama_gqa", "kv_group", (0, 1, 0, 2, 0, 1), "layers differ in width already.*pruned from"),
        ("qwen3_5_text", "kv_group", None, "linear attention, which stays"),
    ],
)
def test_what_has_no_stock_shape_is_refused_before_the_work(
    family, unit, genome, said, source, database, tmp_path, text
) -> None:
    opened = source(family)
    if genome:
        export_checkpoint(Assembler(opened, database(family, unit)), genome, tmp_path / "pruned", {}, {})
        opened = ModelSource(str(tmp_path / "pruned"))
    asked = {**pico.RUN, "database": {"levels": 4, "multiple_of": 4, "attention_unit": unit}}
    asked |= {"data": str(text), "output": str(tmp_path / "run"), "target": {"parameters": "70%", "shape": "stock"}}
    for command in (darwinlm.plan, darwinlm.prune):
        with pytest.raises(RequestError, match=said):
            command(opened.name, **asked)
    assert not (tmp_path / "run/database").exists()


def test_less_than_one_layer_cannot_be_asked(checkpoint) -> None:
    with pytest.raises(RequestError, match=r"with one layer left, the narrowest, .* parameters are left"):
        darwinlm.plan(str(checkpoint("llama_gqa")), target={"parameters": 17_500, "shape": "stock"}, **PICO)


def test_a_shape_is_a_wish_of_its_own() -> None:
    asked = TargetConfig(parameters="50%", shape="stock")
    assert described(asked, 10) == "parameters 50%, stock shape"
    assert as_flags(asked) == ["--target.parameters", "50%", "--target.shape", "stock"]
    assert target_identity(asked)["shape"] == "stock"
    assert "shape" not in target_identity(TargetConfig(parameters="50%"))  # older searches go on


PICO = {"database": {"multiple_of": 8}}
RUN = {**pico.RUN, "search": {**pico.RUN["search"], "generations": 1}}

WITHOUT_US = """
import sys
sys.modules["darwinlm"] = None  # importing it would fail
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
tokens = load_file(sys.argv[1])["tokens"]
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
AutoTokenizer.from_pretrained(sys.argv[2])("text")
with torch.no_grad():
    save_file({"logits": model(tokens).logits}, sys.argv[1])
"""


def test_the_whole_way_and_on_from_there(checkpoint, text, tmp_path) -> None:
    """Pruned, loaded without DarwinLM, pruned further, trained, scored."""
    asked = {**RUN, "data": str(text), "target": {"parameters": "70%", "shape": "stock"}}
    summary = darwinlm.prune(str(checkpoint("llama_gqa")), output=str(tmp_path / "run"), **asked).summary
    limits = summary["achieved"]["limits"]["parameters"]
    assert summary["pruned"]["parameters"] == limits["got"] <= limits["asked"]
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert summary["achieved"]["shape"] == {
        name: config[name]
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    }
    assert "stock shape" in (tmp_path / "run/report.html").read_text()

    tokens = pico.random_tokens(2, 16, seed=1)
    save_file({"tokens": tokens}, tmp_path / "exchange")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_US, tmp_path / "exchange", tmp_path / "run/model"]
    )
    assert ran.returncode == 0
    ours = ModelSource(str(tmp_path / "run/model"))
    streamed = ours.head().logits(pico.stream(ours).final_hidden(tokens))
    torch.testing.assert_close(load_file(tmp_path / "exchange")["logits"], streamed, atol=1e-4, rtol=1e-4)

    before = (tmp_path / "run/model/model.safetensors").stat()
    darwinlm.export_checkpoint(str(tmp_path / "run"))  # it is known again
    assert (tmp_path / "run/model/model.safetensors").stat() == before
    trained = darwinlm.train(
        str(tmp_path / "run/model"), data=str(text), output=str(tmp_path / "trained"), blocks=BLOCKS, train=TRAIN
    ).summary
    assert trained["trained"]["perplexity"] < trained["before"]["perplexity"]
    asked["target"]["parameters"] = "90%"
    again = darwinlm.prune(str(tmp_path / "trained/model"), output=str(tmp_path / "again"), **asked).summary
    assert again["dense"]["parameters"] == summary["pruned"]["parameters"]
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "again/model")
    assert type(smaller).__name__ == "LlamaForCausalLM"
    assert smaller.num_parameters() == again["pruned"]["parameters"] < again["dense"]["parameters"]


def test_several_sizes_lie_within_each_other(checkpoint, text, tmp_path) -> None:
    shape = {**RUN, "target": {"shape": "stock"}}
    members = darwinlm.prune_family(
        str(checkpoint("mistral")), targets="80%,60%", data=str(text), output=str(tmp_path / "run"), **shape
    ).members
    larger, smaller = (member.levels for member in members)
    assert all(larger[name] <= level for name, level in smaller.items())
    for member in members:
        model = AutoModelForCausalLM.from_pretrained(member.folder / "model")
        assert type(model).__name__ == "MistralForCausalLM"


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "phi3"])
def test_llama_cpp_computes_it_in_its_graph_of_llama(name: str, source, checkpoint, tmp_path) -> None:
    from gguf import GGUFReader

    from darwinlm.export.gguf.file import write_gguf
    from llama_cpp import Engine

    database, tokens = pico.make_database(tmp_path / "database", source(name)), pico.random_tokens(1, 24)[0].tolist()
    genome = tuple(ladder.top if ladder.layer == 1 else (ladder.kind == "mlp") * 1 for ladder in database.ladders())
    export_checkpoint(Assembler(source(name), database), genome, tmp_path / "model", {}, {}, stock=True)
    write_gguf(ModelSource(str(tmp_path / "model")), tmp_path / "model.gguf", "f32")
    assert GGUFReader(tmp_path / "model.gguf").fields["general.architecture"].contents() == "llama"
    with torch.no_grad():
        truth = pico.zero_masked(checkpoint(name), database, genome).double()(torch.tensor([tokens])).logits[0, -1]
    found = Engine(tmp_path / "model.gguf").log_probabilities(tokens, pico.VOCABULARY)
    torch.testing.assert_close(found, truth.log_softmax(-1).float(), atol=1e-5, rtol=0)
