"""Linearized costs against derivatives of the real KL, and against the KL of real candidates."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import pico
from darwinlm.assemble import Assembler
from darwinlm.genome import Genome
from darwinlm.runtime import ranks
from darwinlm.search.fitness import Targets, Teacher
from darwinlm.search.linearize import FORBIDDEN, level_moves, linearize
from darwinlm.search.screen import untrained_kls

CASES = [("llama_mha", "auto"), ("llama_bias", "balanced"), ("qwen3_tied", "query_head"), ("llama_gqa", "kv_group")]
TOKENS = pico.random_tokens(4, 12)


def kl_along(assembler: Assembler, genome: Genome, module: int, level: int) -> Callable[[float], float]:
    """The KL per token, in float64, of the masked model whose one module goes a part of the way to a level."""
    ladder = assembler.space.ladders[module]
    path = assembler.source.folder
    dense = pico.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).double().eval()
    moved = tuple(level if i == module else now for i, now in enumerate(genome))
    begin, end, between = (pico.zero_masked(path, assembler.database, g).double() for g in (genome, moved, genome))
    name = ladder.name + {"attention": ".o_proj", "mlp": ".down_proj"}[ladder.kind]

    @torch.no_grad()
    def kl(part: float) -> float:
        ends = (dict(model.get_submodule(name).named_parameters()) for model in (begin, end))
        start, goal = ends
        for key, parameter in between.get_submodule(name).named_parameters():
            parameter.copy_(start[key] + part * (goal[key] - start[key]))
        log_p, log_q = (model(TOKENS).logits.log_softmax(-1) for model in (dense, between))
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()

    return kl


def moves_of(assembler: Assembler, genome: Genome, tokens: Tensor, seed: int = 0) -> list[Tensor]:
    stream = pico.stream(assembler.source)
    dense = None if genome == assembler.space.present else stream.final_hidden(tokens)
    return level_moves(assembler, stream, genome, tokens, torch.Generator().manual_seed(seed), dense=dense)


def some_genome(assembler: Assembler) -> Genome:
    """Every module at a middle level, one of each kind gone."""
    gone = {(0, "attention"), (1, "mlp")}
    return tuple(l.top if (l.layer, l.kind) in gone else l.top // 2 for l in assembler.space.ladders)


@pytest.mark.parametrize(("family", "unit"), CASES)
def test_the_first_order_is_the_derivative_of_the_kl(family, unit, source, database):
    assembler = Assembler(source(family), database(family, unit))
    genome, step = some_genome(assembler), 2e-3
    moves = moves_of(assembler, genome, TOKENS)
    for module, ladder in enumerate(assembler.space.ladders):
        for level in {0, ladder.top - 1, ladder.top} - {genome[module]}:
            kl = kl_along(assembler, genome, module, level)
            slope = (kl(step) - kl(-step)) / (2 * step)
            assert moves[module][:, 0, level].mean().item() == pytest.approx(slope, rel=1e-2, abs=1e-5)


def test_the_dense_model_has_no_slope_and_its_own_levels_cost_nothing(source, database):
    assembler = Assembler(source("llama_mha"), database("llama_mha", "auto"))
    for genome in (assembler.space.present, some_genome(assembler)):
        found = linearize(assembler, pico.stream(assembler.source), genome, TOKENS, torch.Generator(), dense=None)
        assert all(row[level] == 0 for row, level in zip(found.costs, genome))
    moves = moves_of(assembler, assembler.space.present, TOKENS)
    assert all(move[:, 0].abs().max() == 0 for move in moves)
    assert all((move[:, 1:] >= 0).all() for move in moves)


@pytest.mark.parametrize(("family", "unit"), CASES[:2])
def test_the_curvature_is_half_of_the_second_derivative_at_the_dense_model(family, unit, source, database):
    """On average over sampled labels: within five standard errors of the finite difference."""
    assembler = Assembler(source(family), database(family, unit))
    dense, step, repeats = assembler.space.present, 1e-2, 512
    moves = moves_of(assembler, dense, TOKENS.repeat(repeats, 1))
    for module, ladder in enumerate(assembler.space.ladders):
        level = ladder.top // 2
        kl = kl_along(assembler, dense, module, level)
        truth = (kl(step) - 2 * kl(0) + kl(-step)) / step**2 / 2
        drawn = moves[module][:, 1, level]
        assert abs(drawn.mean().item() - truth) < 5 * drawn.std().item() / math.sqrt(len(drawn))


def test_costs_tell_which_single_modules_cost_most(source, database):
    """Rank correlation with the KL of real candidates that differ from the dense model in one module."""
    assembler = Assembler(source("llama_mha"), database("llama_mha", "auto"))
    stream, dense = pico.stream(assembler.source), assembler.space.present
    tokens = pico.random_tokens(64, 16, seed=3)
    found = linearize(assembler, stream, dense, tokens, torch.Generator().manual_seed(1))
    places = [(m, level) for m, ladder in enumerate(assembler.space.ladders) for level in range(1, ladder.top)]
    genomes = [(*dense[:m], level, *dense[m + 1 :]) for m, level in places]
    head = assembler.source.head().detached()
    targets = Targets(Teacher(tokens, stream.final_hidden(tokens), head), [(block, 16) for block in range(64)])
    truth = [kls.mean().item() for kls in untrained_kls(assembler, genomes, targets, torch.float32)]
    assert spearmanr([found.costs[m][level] for m, level in places], truth).statistic > 0.97


def test_ranks_without_a_sequence_linearize_too(source, database, monkeypatch):
    """Three ranks and two sequences: the moves of all together are those of one process."""
    assembler = Assembler(source("llama_mha"), database("llama_mha", "auto"))
    genome, alone = some_genome(assembler), moves_of(assembler, some_genome(assembler), TOKENS[:2])
    gathered: list[list[Tensor]] = []

    def all_gather(moves: list[Tensor]) -> list[list[Tensor]]:
        gathered.append(moves)
        raise InterruptedError

    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    monkeypatch.setattr(ranks, "all_gather", all_gather)
    for own in range(3):
        monkeypatch.setattr(ranks, "rank", lambda own=own: own)
        with pytest.raises(InterruptedError):
            moves_of(assembler, genome, TOKENS[:2])
    monkeypatch.setattr(ranks, "all_gather", lambda _: gathered)
    together = moves_of(assembler, genome, TOKENS[:2])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(alone, together, strict=True))


def test_closed_levels_are_forbidden_and_modules_that_are_gone_cost_nothing(source, database, tmp_path):
    from darwinlm.export.huggingface import export_checkpoint
    from darwinlm.models.source import ModelSource

    levels = database("llama_mha", "auto")
    genome = tuple(l.top if l.layer == 1 else 1 for l in levels.ladders())
    export_checkpoint(Assembler(source("llama_mha"), levels), genome, tmp_path / "model", {}, {})
    again = ModelSource(str(tmp_path / "model"))
    assembler = Assembler(again, pico.make_database(tmp_path / "levels", again))
    found = linearize(assembler, pico.stream(again), genome, TOKENS, torch.Generator())
    for ladder, costs, doubts in zip(assembler.space.ladders, found.costs, found.doubts):
        assert all(cost == FORBIDDEN for cost in costs[: ladder.present])
        assert all(map(math.isfinite, (*costs[ladder.present :], *doubts[ladder.present :])))
