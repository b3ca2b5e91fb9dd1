"""The refit against least squares, stock transformers, and models that it must leave alone."""

from __future__ import annotations

import functools
import itertools
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.errors import CalibrationError, RequestError
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource
from darwinlm.refit import blocks
from darwinlm.refit.blocks import CHECKED, refit_blocks
from darwinlm.refit.judge import best_depth, judge, settle
from darwinlm.refit.least_squares import OUTLYING, Moments, best_matrix, choose_again, clipped, refit_matrix
from darwinlm.refit.store import Refits
from darwinlm.runtime.files import read_tensors


def random_problem(columns: int = 12, rows: int = 5, tokens: int = 40, seed: int = 0):
    """W, X (tokens, C) and E (tokens, H) of which a part can be explained, in float32."""
    generator = torch.Generator().manual_seed(seed)
    weight, wanted = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    x = torch.randn(tokens, columns, generator=generator)
    return weight, x, x @ wanted.T + torch.randn(tokens, rows, generator=generator)


def moments(weight, x, e) -> Moments:
    found = Moments(weight)
    found.add(x, e)
    return found


@pytest.mark.parametrize("damping", [1e-4, 0.3])
def test_a_refit_is_the_ridge_solution_and_padding_stays_zero(damping):
    weight, x, e = random_problem()
    weight[:, 3] = 0  # a column of padding: its input is not zero, but it must add nothing
    live = [column for column in range(12) if column != 3]
    a = damping * x[:, live].double().square().sum(0).mean()
    system = torch.cat([x[:, live].double(), a.sqrt() * torch.eye(11, dtype=torch.float64)])
    goal = torch.cat([e.double(), torch.zeros(11, 5, dtype=torch.float64)])
    truth = weight.double()
    truth[:, live] += torch.linalg.lstsq(system, goal).solution.T
    assert torch.allclose(refit_matrix(weight, moments(weight, x, e), damping), truth, atol=1e-5)


def test_the_error_is_the_sum_of_squares():
    weight, x, e = random_problem()
    change = torch.randn(5, 12, dtype=torch.float64)
    truth = (e.double() - x.double() @ change.T).square().sum().item()
    assert moments(weight, x, e).error(change) == pytest.approx(truth, rel=1e-5)


def test_the_damping_with_the_least_error_elsewhere_is_taken():
    weight, x, e = random_problem()
    fit, check = moments(weight, x[:20], e[:20]), moments(weight, x[20:], e[20:])
    dampings = (10.0, 1.0, 0.1, 1e-2, 1e-3)
    errors = {d: check.error(refit_matrix(weight, fit, d) - weight) for d in dampings}
    new, chosen = best_matrix(weight, fit, check, torch.Tensor.float, dampings=dampings)
    assert chosen == min(errors, key=errors.__getitem__)
    assert torch.equal(new, refit_matrix(weight, fit, chosen).float())


def test_what_outlying_tokens_lack_is_clipped():
    """In its own direction, at three times the median of its sequence; the square is the harmonic sum of both."""
    lack = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0])[:, None, None]
    lack[:, 0] *= 1000  # a sink
    size = lack.double().square().sum(-1)
    most = OUTLYING * size.sort(-1).values[:, 3:4]
    found = clipped(lack).double()
    assert torch.allclose(found.square().sum(-1), 1 / (1 / size + 1 / most), rtol=1e-5)
    assert torch.allclose(torch.cosine_similarity(found, lack.double(), dim=-1), torch.ones(2, 7, dtype=torch.float64))
    assert torch.equal(clipped(torch.zeros(2, 5, 3)), torch.zeros(2, 5, 3))


def test_a_matrix_that_no_refit_improves_stays():
    weight, x, e = random_problem()
    fit, check = moments(weight, x, e), moments(weight, x, -e)
    new, damping = best_matrix(weight, fit, check, torch.Tensor.bfloat16)
    assert damping is None
    assert torch.equal(new, weight.bfloat16())


def test_columns_chosen_again_are_those_of_the_corrected_problem():
    """Every rival choice of one column less has a larger ridge error against what the module should give."""
    weight, x, e = random_problem(columns=6, seed=3)
    damping, wide = 1e-3, moments(weight, x, e)
    kept, matrix = choose_again(weight, wide, 5, damping, torch.Tensor.double)
    a = damping * x.double().square().sum(0).mean()
    system = torch.cat([x.double(), a.sqrt() * torch.eye(6, dtype=torch.float64)])
    goal = system @ refit_matrix(weight, wide, damping).T
    rivals = {}
    for gone in range(6):
        left = [column for column in range(6) if column != gone]
        solution = torch.linalg.lstsq(system[:, left], goal).solution
        rivals[gone] = (goal - system[:, left] @ solution).square().sum().item(), solution.T
    best = min(rivals, key=lambda gone: rivals[gone][0])
    assert kept.tolist() == [column for column in range(6) if column != best]
    assert torch.allclose(matrix, rivals[best][1], atol=1e-5)


def test_activations_that_overflow_are_named():
    weight, x, e = random_problem()
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        refit_matrix(weight, moments(weight, x * 1e30, e), 1e-2)


def refitted(folder, source, database, genome, tokens) -> Refits:
    refits = Refits(folder, {"genome": list(genome)})
    pruned = Assembler(source, database).stream(genome, pico.CPU, torch.float32)
    columns = [database.kept(l.name, level) for l, level in zip(database.ladders(), genome) if l.kind == "mlp"]
    refit_blocks(refits, pico.stream(source), pruned, columns.__getitem__, tokens, batch=3)
    return refits


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_arithmetic_in_bfloat16_rounds_nothing_that_stays(stored, database, tmp_path, monkeypatch):
    """Matrices that no refit improves, and rows of the matrices in front where other columns are kept, are the checkpoint's; each
    tensor keeps the dtype that it is stored in."""
    folder = pico.make_checkpoint(tmp_path / "model", "llama_gqa", dtype=stored)
    tensors = load_file(folder / "model.safetensors")
    other = "model.layers.1.self_attn.o_proj.weight"
    save_file({**tensors, other: tensors[other].bfloat16()}, folder / "model.safetensors", {"format": "pt"})
    opened = ModelSource(str(folder))
    levels = pico.make_database(tmp_path / "database", opened, "kv_group")
    genome = (0, 0, *(ladder.top // 2 for ladder in levels.ladders()[2:]))
    errors = itertools.count(1000.0, -1.0)  # other columns are always the better ones
    monkeypatch.setattr(blocks._Streams, "_error", lambda *_: next(errors))
    refits, dense = Refits(None, {}), BlockStream(opened, pico.CPU, torch.bfloat16)
    assembler = Assembler(opened, levels)
    pruned = assembler.stream(genome, pico.CPU, torch.bfloat16)
    columns = functools.partial(assembler.mlp_columns, genome)
    refit_blocks(refits, dense, pruned, columns, pico.random_tokens(16, 32, seed=5), batch=4)
    before, exchanged = dict(assembler.tensors(genome)), 0
    for name, tensor in refits.put_into(before.items()):
        assert tensor.dtype == opened.dtype_of(name)
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            rows = {tuple(row) for row in opened.tensors([name])[name].tolist()}
            assert all(tuple(row) in rows for row in tensor.tolist())
            exchanged += not torch.equal(tensor, before[name])
        elif name.startswith("model.layers.0."):
            assert torch.equal(tensor, before[name])
    assert exchanged


def test_a_refit_leaves_what_the_text_does_not_reach(tmp_path):
    """An MLP that is fed zeros alone: the database warned, the run goes on."""
    folder = pico.make_checkpoint(tmp_path / "model", "llama_gqa")
    file, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    save_file({n: t * (n != name) for n, t in load_file(file).items()}, file, {"format": "pt"})
    opened = ModelSource(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = pico.make_database(tmp_path / "database", opened, "kv_group")
    genome = tuple(ladder.top // 2 for ladder in levels.ladders())
    refits = refitted(tmp_path / "refit", opened, levels, genome, pico.random_tokens(16, 32, seed=5))
    assert refits.matrices["model.layers.1.mlp.down_proj.weight"].damping is None
    assert "mlp.down_proj.weight" not in refits.read(1)


def test_columns_are_chosen_again_beside_what_is_no_parameter(tmp_path, monkeypatch):
    """The activation of Apertus has numbers of its own, which stay."""
    opened = ModelSource(str(pico.make_checkpoint(tmp_path / "model", "apertus")))
    levels = pico.make_database(tmp_path / "database", opened)
    errors = itertools.count(1000.0, -1.0)
    monkeypatch.setattr(blocks._Streams, "_error", lambda *_: next(errors))
    genome = tuple(ladder.top // 2 for ladder in levels.ladders())
    refits = refitted(tmp_path / "refit", opened, levels, genome, pico.random_tokens(16, 32, seed=5))
    assert any(one.exchanged for one in refits.matrices.values())


def test_the_dense_genome_stays_as_it_is(source, database, tmp_path):
    levels = database("llama_gqa", "kv_group")
    dense = tuple(0 for _ in levels.ladders())
    refits = refitted(tmp_path, source("llama_gqa"), levels, dense, pico.random_tokens(10, 16))
    assert all(one.damping is None and one.before == 0 for one in refits.matrices.values())
    tensors = Assembler(source("llama_gqa"), levels).tensors(dense)
    stock = AutoModelForCausalLM.from_pretrained(source("llama_gqa").folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, stock[name]) for name, tensor in refits.put_into(tensors))


@pytest.mark.parametrize(
    ("family", "unit"), [("llama_mha", "auto"), ("llama_bias", "query_head"), ("qwen3", "query_head")]
)
def test_the_told_error_is_that_of_the_refitted_model(family, unit, source, database, tmp_path):
    """Absent modules and padding included; hidden states of stock transformers are the truth."""
    levels, opened, tokens = database(family, unit), source(family), pico.random_tokens(20, 24, seed=5)
    genome = (2, 3, 1, levels.ladders()[3].top, levels.ladders()[4].top, 4)
    refits = refitted(tmp_path, opened, levels, genome, tokens)
    assert len(refits.matrices) == 4
    assembler, checked = Assembler(opened, levels), tokens[CHECKED - 1 :: CHECKED]
    dense = AutoModelForCausalLM.from_pretrained(opened.folder, dtype=torch.float32)
    model, unrefitted, before_last = (assembler.model(genome, pico.CPU) for _ in range(3))
    refits.load_into(model)
    last = [*refits.matrices][-1].rsplit(".", 2)[0]
    before_last.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith(last)}, strict=False)
    exported = dict(refits.put_into(assembler.tensors(genome)))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in exported.items())
    streams = []
    for one in (dense, before_last, model, unrefitted):
        seen = []
        one.model.norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            one(checked)
        streams += seen
    before, after, without = (streams[0] - other for other in streams[1:])
    errors = [(clipped(before) - gain).square().sum(-1).mean().item() for gain in (0.0, before - after)]
    *_, last = refits.matrices.values()
    assert (last.before, last.after) == pytest.approx(errors, rel=1e-3)
    assert after.square().mean() < without.square().mean()


def test_a_run_without_a_refit_is_the_database_alone(checkpoint, text, tmp_path):
    settings = {**pico.RUN, "search": {**pico.RUN["search"], "generations": 1}, "data": str(text)}
    run = tmp_path / "run"
    summary = darwinlm.prune(str(checkpoint("llama_tied")), output=str(run), refit={"tokens": 0}, **settings).summary
    assert "before_refit" not in summary
    assert not (run / "refit").exists()
    with pytest.raises(RequestError, match=r"refit\.tokens is 0"):
        darwinlm.refit_genome(str(run))
    before = read_tensors(run / "model/model.safetensors")[0]
    refits = darwinlm.refit_genome(str(run), refit={"tokens": 512}).refits
    assert refits.identity["tokens"] == 512
    darwinlm.export_checkpoint(str(run))
    after = read_tensors(run / "model/model.safetensors")[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {name for name, one in refits.matrices.items() if one.damping is not None}
    assert all("q_proj" not in name and "norm" not in name for name in changed)
    again = darwinlm.prune(output=str(run)).summary
    assert again["before_refit"] == summary["pruned"]


def test_a_damaged_file_is_made_again(checkpoint, text, tmp_path):
    run = tmp_path / "run"
    darwinlm.prune(str(checkpoint("llama_tied")), data=str(text), output=str(run), **pico.RUN)
    file = run / "refit/layer-1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    darwinlm.refit_genome(str(run))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("family", ["llama_gqa", "llama_tied"])
def test_the_judge_sees_whole_models(family, source, database, tmp_path):
    levels, opened, tokens = database(family, "auto"), source(family), pico.random_tokens(12, 24, seed=5)
    genome = (2, 3, 1, levels.ladders()[3].top, levels.ladders()[4].top, 4)
    refits = refitted(tmp_path, opened, levels, genome, tokens[:8])
    assembler = Assembler(opened, levels)
    judge(refits, pico.stream(opened), assembler.stream(genome, pico.CPU, torch.float32), tokens[8:])
    dense = AutoModelForCausalLM.from_pretrained(opened.folder, dtype=torch.float32)
    model, kls = assembler.model(genome, pico.CPU), {}
    for depth in range(4):
        refits.load_into(model, range(depth))
        with torch.no_grad():
            log_p, log_q = (one(tokens[8:]).logits.double().log_softmax(-1) for one in (dense, model))
        kls[depth] = (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)
    assert refits.kl == pytest.approx({depth: kl.mean().item() for depth, kl in kls.items()}, rel=1e-4)
    assert len(set(refits.kl.values())) > 2
    assert refits.depth == best_depth(kls)


BLOCKS = torch.tensor([0.1, 0.9, 0.2, 0.4])


@pytest.mark.parametrize(
    ("added", "depth"),
    [
        ({0: [0.5] * 4, 2: [0.1] * 4, 4: [0.0] * 4}, 4),
        ({0: [0.5] * 4, 2: [0.1, -0.1, 0.1, -0.1], 4: [0.0] * 4, 6: [0.0, 0.1, 0.0, 0.0]}, 2),
        ({0: [0.1, -0.1, 0.2, -0.1], 2: [0.0] * 4, 4: [-0.1, 0.1, 0.0, 0.1]}, 2),
        ({0: [0.0] * 4, 2: [0.1] * 4}, 0),
        ({0: [0.5], 2: [0.1], 4: [0.0]}, 4),
    ],
)
def test_as_few_layers_as_are_as_good_as_the_best_have_their_refit(added, depth):
    """What blocks have in common does not count; a single block tells nothing of doubt."""
    refits = Refits(None, {})
    settle(refits, {layers: BLOCKS[: len(by)] + torch.tensor(by) for layers, by in added.items()})
    assert refits.depth == depth


def test_a_refit_that_does_not_lower_kl_is_not_taken(checkpoint, text, tmp_path):
    """Also where every matrix lowered its own error."""
    run = tmp_path / "run"
    darwinlm.prune(str(checkpoint("llama_tied")), data=str(text), output=str(run), **pico.RUN)
    refits = darwinlm.refit_genome(str(run)).refits
    settle(refits, {0: BLOCKS, 1: BLOCKS + 0.1})
    summary = darwinlm.prune(output=str(run)).summary
    assert "before_refit" not in summary


def test_a_refit_is_taken_as_deep_as_it_lowers_kl(checkpoint, text, tmp_path):
    """Of the layers behind that, the exported model has what the search left."""
    run = tmp_path / "run"
    plain = darwinlm.prune(
        str(checkpoint("llama_tied")), data=str(text), output=str(run), refit={"tokens": 0}, **pico.RUN
    )
    without = read_tensors(run / "model/model.safetensors")[0]
    refits = darwinlm.refit_genome(str(run), refit={"tokens": 512}).refits
    settle(refits, {0: BLOCKS + 0.2, 1: BLOCKS, 2: BLOCKS + 0.1})
    summary = darwinlm.prune(output=str(run)).summary
    assert summary["before_refit"] == plain.summary["pruned"]
    for name, tensor in read_tensors(run / "model/model.safetensors")[0].items():
        own = refits.read(0).get(name.removeprefix("model.layers.0."))
        assert torch.equal(tensor, without[name] if own is None else own)


def test_experts_that_stay_are_as_they_are_stored(tmp_path, monkeypatch):
    """In arithmetic that rounds more: every second expert improves, the others do not."""
    opened = ModelSource(str(pico.make_checkpoint(tmp_path / "model", "qwen3_moe")))
    levels = pico.make_database(tmp_path / "database", opened)
    assembler, genome = Assembler(opened, levels), (0,) * len(levels.ladders())
    improves = itertools.cycle((True, False))

    def best(weight, fit, check, stored):
        return (stored(weight.float() + 1), 0.1) if weight.shape[1] == 16 and next(improves) else (weight, None)

    monkeypatch.setattr(blocks, "best_matrix", best)
    refits, dense = Refits(None, {}), BlockStream(opened, pico.CPU, torch.bfloat16)
    pruned = assembler.stream(genome, pico.CPU, torch.bfloat16)
    refit_blocks(refits, dense, pruned, None, pico.random_tokens(16, 32, seed=5), batch=4)
    before = dict(assembler.tensors(genome))
    mixtures = [name for name in before if name.endswith("mlp.down_proj.weight")]
    for name, tensor in refits.put_into(before.items()):
        same = [torch.equal(*pair) for pair in zip(tensor.chunk(4, -1), before[name].chunk(4, -1))]
        assert same == ([False, True] * 2 if name in mixtures else [True] * len(same))
    assert len(mixtures) == len(dense)
