"""ShearedLLaMA's parts against closed forms, brute force and planted problems; the whole on models of every family."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call
from transformers import AutoModelForCausalLM

import pico
from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.hard_concrete import BETA, GAMMA, ZETA, at_rest, draw, openness, sample
from darwinlm.comparison.methods.masks import Constraints, Gates, Masks, fold, gated
from darwinlm.comparison.methods.orders import removal_order
from darwinlm.comparison.methods.sheared import (
    learn,
    nearest_levels,
    sheared,
    sheared_model,
    sheared_tokens,
)
from darwinlm.comparison.methods.task import Task
from darwinlm.config import SearchConfig, ShearedConfig
from darwinlm.cost import generation_tokens
from darwinlm.database.levels import Ladder
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.genome import Space
from darwinlm.models.source import ModelSource
from darwinlm.runtime.seeds import torch_generator
from darwinlm.search.fitness import Teacher

TOKENS = pico.random_tokens(4, 16, seed=5)
SEARCH = {"generations": 2, "offspring": 3, "survivors": [2, 1], "train_tokens": [16, 32], "select_tokens": [64, 64]}
CPU = pico.CPU


@pytest.fixture
def task(source, database, tmp_path):
    """Family, share, attention unit and settings of the method -> a task."""

    def make(family: str = "llama_gqa", share: float = 0.5, unit: str = "auto", train=None, **settings) -> Task:
        stream = pico.stream(source(family))
        return Task(
            assembler=Assembler(source(family), database(family, unit)),
            stream=stream,
            teacher=Teacher(TOKENS, stream.final_hidden(TOKENS), source(family).head()),
            train=pico.random_tokens(4, 16, seed=6) if train is None else train,
            share=share,
            search=SearchConfig(**SEARCH),
            seed=0,
            folder=tmp_path,
            identity={},
            sheared=ShearedConfig(**settings),
        )

    return make


@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 0.7, 3.0])
def test_gates_have_the_distribution_that_the_paper_prints(log_alpha):
    """Of evenly spaced u, the share with a gate of at most x is the distribution function at x, to one part in n."""
    n = 100_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    gates = sample(torch.full((n,), log_alpha, dtype=torch.float64), uniform)

    def at_most(x: float) -> float:
        s = (x - GAMMA) / (ZETA - GAMMA)
        return 1 / (1 + math.exp(-(BETA * (math.log(s) - math.log(1 - s)) - log_alpha)))

    for x in (0.0, 0.1, 0.5, 0.9, 0.999):
        assert (gates <= x).double().mean().item() == pytest.approx(at_most(x), abs=1.01 / n)
    assert (gates == 1).double().mean().item() == pytest.approx(1 - at_most(1.0), abs=1.01 / n)
    opened = openness(torch.tensor(log_alpha, dtype=torch.float64)).item()
    assert opened == pytest.approx(1 - at_most(0.0), rel=1e-12)
    assert gates.min() >= 0
    assert gates.max() <= 1


def test_the_gradient_of_a_gate_is_its_slope():
    log_alpha = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64, requires_grad=True)
    uniform = torch.full((7,), 0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: sample(a, uniform), log_alpha)
    assert torch.autograd.gradcheck(openness, log_alpha)


def test_a_gate_at_rest_is_closed_or_whole_at_the_ends():
    torch.testing.assert_close(at_rest(torch.tensor([-4.6, 0.0, 4.6])), torch.tensor([0.0, 0.5, 1.0]))


def test_draws_depend_on_their_generator_alone():
    alphas = torch.zeros(50)
    first = draw(alphas, torch_generator(0, "gates", 3))
    torch.manual_seed(7)
    assert torch.equal(first, draw(alphas, torch_generator(0, "gates", 3)))
    assert not torch.equal(first, draw(alphas, torch_generator(0, "gates", 4)))


def ladder(name: str, groups: int, tops: int, kind="mlp", rounds=None) -> Ladder:
    removed = tuple(i * groups // tops for i in range(tops + 1))
    return Ladder(name, kind, 0, groups, 1, removed, rounds)


@given(st.integers(0, 10**6))
def test_levels_are_the_nearest_of_all_with_the_budget(seed):
    rng = random.Random(seed)
    kinds = rng.choices(["attention", "mlp"], k=rng.randint(1, 5))
    space = Space(tuple(ladder(f"m{i}", 12, rng.choice([2, 3, 4]), kind) for i, kind in enumerate(kinds)))
    gone, share = [rng.random() for _ in kinds], rng.uniform(0.1, 0.9)

    def distance(genome):
        return sum((l.top * (l.removed[x] / 12 - g)) ** 2 for l, x, g in zip(space.ladders, genome, gone))

    allowed = [
        genome
        for genome in itertools.product(*(range(l.top + 1) for l in space.ladders))
        if space.totals(genome) == space.targets(share)
    ]
    found = nearest_levels(space, gone, share)
    assert space.totals(found) == space.targets(share)
    assert distance(found) == pytest.approx(min(map(distance, allowed)))


@pytest.mark.parametrize("seed", range(5))
def test_constraints_are_met_within_a_step(seed):
    """Random linear losses of the gates, opposed to the budget or in favour of it."""
    rng = random.Random(seed)
    space = Space(tuple(ladder(f"m{i}", 24, 8, ("attention", "mlp")[i % 2]) for i in range(8)))
    share, steps = rng.uniform(0.2, 0.7), 400
    worth = [torch.randn(24, generator=torch_generator(seed, "worth", i)) * 0.1 + 0.03 for i in range(8)]
    masks, constraints = Masks(space.ladders, CPU), Constraints(space, share, CPU)
    down = torch.optim.Adam(masks.parameters(), lr=0.05)
    up = torch.optim.Adam(constraints.parameters(), lr=1.0, maximize=True)
    for step in range(steps):
        gates = masks.draw(torch_generator(seed, "gates", step))
        loss = -sum((module * unit * w).sum() for module, unit, w in zip(gates.modules, gates.units, worth))
        (loss + constraints.penalty(masks.kept(), min(1.0, 2 * step / steps))).backward()
        for optimizer in (down, up):
            optimizer.step()
            optimizer.zero_grad()
        masks.bound()
    kept = masks.kept().detach()
    for kind, total in space.targets(share).items():
        members = space.members(kind)
        gone = sum(space.ladders[i].top * (1 - kept[i].item()) for i in members)
        assert abs(gone - total) < 1


def test_targets_come_gradually():
    space = Space((ladder("a", 8, 4), ladder("b", 8, 4, "attention")))
    constraints = Constraints(space, 0.5, CPU)
    with torch.no_grad():
        constraints.linear.copy_(torch.tensor([2.0, 3.0]))
        constraints.square.copy_(torch.tensor([5.0, 7.0]))
    kept = torch.tensor([0.9, 0.6])  # mlp a, attention b
    for progress, target in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        a, b = 0.9 - target, 0.6 - target
        expected = 2 * b + 5 * b**2 + 3 * a + 7 * a**2
        assert constraints.penalty(kept, progress).item() == pytest.approx(expected, rel=1e-5)


def random_gates(ladders, seed: int) -> Gates:
    generator = torch.Generator().manual_seed(seed)
    units = [torch.rand(l.columns // l.group_size, generator=generator) for l in ladders]
    units[0][0], modules = 0.0, torch.rand(len(ladders), generator=generator)
    modules[-1] = 0.0
    return Gates(units, modules)


@pytest.mark.parametrize(("family", "unit"), pico.FAMILIES_AND_UNITS)
@torch.no_grad()
def test_gates_are_scaled_columns_of_the_stock_model(family, unit, checkpoint, database):
    ladders = database(family, unit).ladders()
    stock = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64).eval()
    gates = random_gates(ladders, 3)
    changed = dict(stock.named_parameters())
    for l, units, module in zip(ladders, gates.units, gates.modules):
        name = l.name + (".o_proj" if l.kind == "attention" else ".down_proj")
        scale = torch.cat([gate.expand(l.group_size) for gate in units]).double()
        changed[f"{name}.weight"] = changed[f"{name}.weight"] * scale * module
        if f"{name}.bias" in changed:
            changed[f"{name}.bias"] = changed[f"{name}.bias"] * module
    truth = functional_call(stock, changed, (TOKENS,)).logits
    with gated(stock, ladders, gates):
        torch.testing.assert_close(stock(TOKENS).logits, truth, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(stock(TOKENS).logits, truth, atol=1e-3)
    fold(stock, ladders, gates)
    torch.testing.assert_close(stock(TOKENS).logits, truth, rtol=1e-6, atol=1e-6)


def test_units_leave_by_gate_then_norm_and_in_rounds_where_there_are_some():
    gates, norms = torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 1.0, 2.0])
    assert removal_order(ladder("a", 4, 4), gates, norms) == [3, 1, 0, 2]
    assert removal_order(ladder("a", 4, 2, rounds=2), gates, norms) == [3, 1, 0, 2]
    assert removal_order(ladder("a", 4, 2, rounds=2), torch.tensor([1.0, 2.0, 3.0, 4.0]), norms) == [0, 2, 1, 3]


@pytest.mark.parametrize(("family", "unit"), pico.FAMILIES_AND_UNITS)
def test_the_model_left_is_the_trained_one_with_columns_zeroed(family, unit, task, monkeypatch):
    asked = task(family, unit=unit, share=0.4, learning_rate=1e-2, mask_learning_rate=0.5)
    trained, masks = learn(asked)
    monkeypatch.setattr("darwinlm.comparison.methods.sheared.learn", lambda _: (trained, masks))
    genome = sheared(asked)  # leaves `trained` with its gates folded in
    assert asked.space.totals(genome) == asked.space.targets(0.4)
    with torch.no_grad():
        for l, level, gates in zip(asked.space.ladders, genome, masks.units):
            matrix = trained.get_submodule(l.name + (".o_proj" if l.kind == "attention" else ".down_proj"))
            norms = matrix.weight.unflatten(1, (-1, l.group_size)).norm(dim=(0, 2))
            order = removal_order(l, gates.detach(), norms)  # ties are none here: gates moved apart
            for unit_ in order[: l.removed[level]]:
                matrix.weight[:, unit_ * l.group_size : (unit_ + 1) * l.group_size] = 0
            if level == l.top and matrix.bias is not None:
                matrix.bias.zero_()
        truth = trained(TOKENS, use_cache=False).logits
        model = sheared_model(asked, genome, CPU, torch.float32)
        torch.testing.assert_close(model(TOKENS, use_cache=False).logits, truth, rtol=0, atol=1e-4)
    dense = sum(p.numel() for p in trained.parameters())
    assert sum(p.numel() for p in model.parameters()) < dense


def test_two_runs_give_the_same_bytes(task):
    asked, files = task(), []
    for _ in range(2):
        genome = sheared(asked)
        files.append((genome, (asked.folder / "sheared/model.safetensors").read_bytes()))
    assert files[0] == files[1]


@pytest.mark.parametrize(("noise", "learning_rate"), [(0.0, 0.0), (0.05, 1e-4)])
def test_useless_heads_and_columns_are_the_ones_that_leave(noise, learning_rate, tmp_path, database):
    """Half of the heads and columns of every layer feed nothing, or noise, into the residual stream: they must go."""
    generator = torch.Generator().manual_seed(1)
    family, ladders = "llama_gqa", database("llama_gqa", "query_head").ladders()
    model, useless = pico.random_model(family, num_hidden_layers=3), []
    with torch.no_grad():
        for l in ladders:
            matrix = model.get_submodule(l.name + (".o_proj" if l.kind == "attention" else ".down_proj"))
            units = l.columns // l.group_size
            noisy = torch.randperm(units, generator=generator)[: units // 2].tolist()
            columns = [u * l.group_size + i for u in noisy for i in range(l.group_size)]
            matrix.weight[:, columns] = 0
            useless.append((matrix, columns, set(noisy)))
        # text that the model without noise likes: its own samples
        tokens = torch.randint(pico.BYTES, (64, 1), generator=generator)
        model.lm_head.weight *= 8
        for _ in range(23):
            chances = model(tokens, use_cache=False).logits[:, -1, : pico.BYTES].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
        for matrix, columns, _ in useless:
            matrix.weight[:, columns] = noise * torch.randn(matrix.weight[:, columns].shape, generator=generator)
    model.save_pretrained(tmp_path / "noisy")
    source = ModelSource(str(tmp_path / "noisy"))
    made = pico.make_database(tmp_path / "database", source, "query_head")
    asked = Task(
        Assembler(source, made), pico.stream(source),
        Teacher(tokens, pico.stream(source).final_hidden(tokens), source.head()), tokens, 0.5,
        SearchConfig(**SEARCH, batch_sequences=32), 0, tmp_path, {},
        ShearedConfig(tokens=160 * 32 * 24, learning_rate=learning_rate, mask_learning_rate=0.1),
    )  # fmt: skip
    _, masks = learn(asked)
    hits = []
    for gates, (_, _, noisy) in zip(masks.units, useless):
        gone = set(gates.detach().argsort()[: len(noisy)].tolist())
        hits.append(len(gone & noisy) / len(noisy))
    assert sum(hits) / len(hits) > 0.9


def test_tokens_are_those_of_the_search_unless_said_otherwise(task):
    assert sheared_tokens(task()) == 2 * generation_tokens(SearchConfig(**SEARCH))[0] == 2 * (3 * 16 + 3 * 32)
    assert sheared_tokens(task(tokens=100)) == 100


def test_a_loss_that_is_not_finite_says_what_to_lower(task):
    with pytest.raises(RequestError, match=r"sheared.learning_rate \(now 1e\+20\)"):
        learn(task(learning_rate=1e20, tokens=200))


def test_a_lost_model_is_named(task):
    asked = task()
    genome = sheared(asked)
    (asked.folder / "sheared/orders.safetensors").unlink()
    with pytest.raises(DamagedFileError, match=r"orders.safetensors"):
        sheared_model(asked, genome, CPU, torch.float32)


def test_masks_alone_leave_the_weights(task, checkpoint):
    trained, _ = learn(task(learning_rate=0.0))
    stock = dict(AutoModelForCausalLM.from_pretrained(checkpoint("llama_gqa")).named_parameters())
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, stock[name])
    assert dataclasses.asdict(ShearedConfig())["tokens"] == 0
