"""Untrained scores from a reference's activations against all logits of the masked stock model, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

import pico
from darwinlm import losses
from darwinlm.assemble import Assembler
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.genome import Genome
from darwinlm.losses import token_kl
from darwinlm.models.source import ModelSource
from darwinlm.search import fitness
from darwinlm.search.fitness import Targets, Teacher, kl_to_teacher
from darwinlm.search.screen import Screen

DRAWN = [(3, 24), (0, 24), (5, 24), (2, 9), (1, 24)]
TOKENS = pico.random_tokens(6, 24, seed=1)
SOME = [
    ("llama_mha", "auto"),
    ("llama_gqa", "kv_group"),
    ("llama_gqa", "query_head"),
    ("llama_bias", "balanced"),
    ("mistral", "kv_group"),
    ("qwen2_tied", "query_head"),
    ("qwen3_bias", "balanced"),
]
Truth = Callable[[Genome], float]


@torch.no_grad()
def naive_kl(dense: Any, masked: Any, drawn: list[tuple[int, int]] = DRAWN) -> float:
    """Mean over the drawn tokens, block by block, from all logits in float64."""
    total, count = 0.0, 0
    for block, length in drawn:
        ids = TOKENS[block : block + 1, :length]
        p, q = (log_softmax(model.double()(ids, use_cache=False).logits, -1) for model in (dense, masked))
        total += (p.exp() * (p - q)).sum().item()
        count += length
    return total / count


def truth_of(folder: Path, levels: Database) -> Truth:
    """The KL of any genome of a checkpoint."""
    dense = pico.zero_masked(folder, levels, (0,) * len(levels.modules))
    return lambda genome: naive_kl(dense, pico.zero_masked(folder, levels, genome))


def teacher_of(source: ModelSource) -> Teacher:
    return Teacher(TOKENS, pico.stream(source).final_hidden(TOKENS), source.head())


def screen_of(
    source: ModelSource, levels: Database, drawn: Sequence[tuple[int, int]] = DRAWN, **options: Any
) -> Screen:
    assembler = Assembler(source, levels, keep_dense=True, cache_bytes=1 << 20)
    return Screen(assembler, Targets(teacher_of(source), list(drawn)), torch.float32, **options)


def close(kl: float) -> Any:
    return pytest.approx(kl, rel=2e-5, abs=2e-6)


def half(levels: Database, *absent: int) -> Genome:
    """Every module at its middle level, those at the given places gone."""
    return tuple(l.top if i in absent else l.top // 2 for i, l in enumerate(levels.ladders()))


def changed(levels: Database, genome: Genome, place: int) -> Genome:
    """Another level of one module: gone, or dense where it was gone."""
    top = levels.ladders()[place].top
    return (*genome[:place], 0 if genome[place] == top else top, *genome[place + 1 :])


def family_of_genomes(levels: Database, reference: Genome) -> list[Genome]:
    """The reference; what differs in its first, middle or last layer; what differs everywhere."""
    return [reference, *(changed(levels, reference, place) for place in (0, 1, 3, 4, 5)), pico.random_genome(levels, 7)]


@pytest.mark.parametrize(("family", "unit"), SOME)
def test_the_score_is_that_of_all_logits(family: str, unit: str, checkpoint, source, database) -> None:
    levels = database(family, unit)
    truth, screen = truth_of(checkpoint(family), levels), screen_of(source(family), levels)
    for reference in (half(levels), half(levels, 1, 4)):
        assert screen.refer(reference) == close(truth(reference))
        for genome in family_of_genomes(levels, reference):
            assert screen(genome) == close(truth(genome))


def test_the_reference_does_not_matter(checkpoint, source, database) -> None:
    """References in turn, each made from the one before; every genome scores the same after each of them, or alone."""
    levels = database("llama_gqa", "query_head")
    screen, alone = screen_of(source("llama_gqa"), levels), screen_of(source("llama_gqa"), levels)
    everything = tuple(ladder.top for ladder in levels.ladders())
    dense = (0,) * len(everything)
    genomes = [*family_of_genomes(levels, half(levels, 2)), everything, dense]
    scores = list(map(alone, genomes))  # without any reference
    truth = truth_of(checkpoint("llama_gqa"), levels)
    assert scores == [close(truth(genome)) for genome in genomes]
    assert scores[-1] == pytest.approx(0, abs=1e-6)
    for place in (3, 5, 0, 7, 8, 1, 1):
        assert screen.refer(genomes[place]) == scores[place]
        assert [screen(genome) for genome in genomes] == scores


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ],
)
def test_layers_keep_their_sliding_windows(family: str, overrides: dict, tmp_path: Path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", family, **overrides)
    source = ModelSource(str(folder))
    levels = pico.make_database(tmp_path / "database", source)
    truth, screen = truth_of(folder, levels), screen_of(source, levels)
    screen.refer(half(levels))
    for genome in family_of_genomes(levels, half(levels)):
        assert screen(genome) == close(truth(genome))


def test_small_batches_and_chunks_score_alike(checkpoint, source, database, monkeypatch) -> None:
    levels = database("qwen3_bias", "balanced")
    monkeypatch.setattr(fitness, "SCORING_TOKENS", 48)
    monkeypatch.setattr(losses, "CACHED_VALUES", 1)  # 16 tokens at a time: no divisor of a batch
    screen, truth = screen_of(source("qwen3_bias"), levels), truth_of(checkpoint("qwen3_bias"), levels)
    assert len(screen.targets.batches) == 4
    screen.refer(half(levels))
    for genome in family_of_genomes(levels, half(levels)):
        assert screen(genome) == close(truth(genome))


class Counting:
    """Counts which layers of an assembler are made and which are run."""

    def __init__(self, assembler: Assembler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[int] = []
        self.run: list[int] = []
        original = assembler.block

        def block(genome: Genome, layer: int, *where: Any) -> nn.Module:
            self.made.append(layer)
            made = original(genome, layer, *where)
            made.register_forward_hook(lambda *_: self.run.append(layer))
            return made

        monkeypatch.setattr(assembler, "block", block)

    def during(self, call: Callable[[Genome], float], genome: Genome) -> tuple[list[int], list[int]]:
        """Layers run and made while a genome is scored."""
        self.run.clear()
        self.made.clear()
        call(genome)
        return self.run.copy(), self.made.copy()


def test_only_layers_from_the_first_change_on_are_run(source, database, monkeypatch) -> None:
    levels = database("llama_gqa", "kv_group")
    screen, genome = screen_of(source("llama_gqa"), levels, DRAWN[:2]), half(levels)  # a single batch
    count = Counting(screen.assembler, monkeypatch)
    assert count.during(screen.refer, genome)[0] == [0, 1, 2]
    for place, layers in [(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2]), (3, [1, 2]), (4, [2]), (5, [2])]:
        other = changed(levels, genome, place)
        assert count.during(screen, other) == (layers, layers[:1])  # only the changed layer is made
        assert count.during(screen, other) == (layers, [])
    assert count.during(screen, genome) == ([], [])
    assert count.during(screen.refer, changed(levels, genome, 4)) == ([2], [])
    assert count.during(screen, genome) == ([2], [])
    assert count.during(screen, changed(levels, changed(levels, genome, 4), 2)) == ([1, 2], [])


def test_without_memory_layers_are_made_anew(source, database, monkeypatch) -> None:
    levels = database("llama_gqa", "kv_group")
    rich, poor = (screen_of(source("llama_gqa"), levels, cache_bytes=limit) for limit in (1 << 30, 0))
    count = Counting(poor.assembler, monkeypatch)
    for genome in family_of_genomes(levels, half(levels)):
        assert poor(genome) == rich(genome)
        assert count.during(poor, genome)[1] == [0, 1, 2]


def hidden_of(screen: Screen, genome: Genome) -> list[Tensor]:
    """Final hidden states of a genome's whole model, for each batch."""
    model = screen.assembler.model(genome, pico.CPU)
    with torch.no_grad():
        return [model.model(input_ids=ids, use_cache=False).last_hidden_state for ids in screen.targets.tokens()]


@pytest.mark.parametrize("chunked", [False, True])
def test_kept_distributions_and_those_made_again_give_the_same(source, database, monkeypatch, chunked: bool) -> None:
    """And the same as the plain loss between hidden states."""
    if chunked:
        monkeypatch.setattr(losses, "CACHED_VALUES", 1)
    levels, teacher = database("qwen3", "kv_group"), teacher_of(source("qwen3"))
    screen, genome = screen_of(source("qwen3"), levels), half(levels, 1)
    hidden, head = hidden_of(screen, genome), screen.head
    kept = Targets(teacher, DRAWN)
    monkeypatch.setattr(fitness, "KEPT_BYTES", 0)
    made_again = Targets(teacher, DRAWN)
    scores = [targets.kl(hidden, head) for targets in (kept, kept, made_again, made_again)]
    assert len(set(scores)) == 1
    theirs = torch.cat([teacher.hidden[block, :length] for block, length in DRAWN])
    ours = torch.cat([batch.flatten(0, 1) for batch in hidden])
    assert scores[0] == pytest.approx(token_kl(theirs, ours, head, head), rel=1e-6)
    assert kl_to_teacher(screen.assembler.model(genome, pico.CPU), made_again, torch.float32) == scores[0]


def test_distributions_are_made_once_where_they_are_kept(source, monkeypatch) -> None:
    teacher, calls = teacher_of(source("qwen3")), itertools.count()
    original = fitness.distributions

    def counted(*asked: Tensor) -> tuple[Tensor, Tensor]:
        next(calls)
        return original(*asked)

    def used() -> Iterator[int]:
        targets = Targets(teacher, [(0, 24), (1, 24)])
        for _ in range(2):
            assert targets.kl([teacher.hidden[:2]], teacher.head) == pytest.approx(0, abs=1e-6)
            yield next(calls)

    monkeypatch.setattr(fitness, "distributions", counted)
    assert list(used()) == [1, 2]  # each look at the counter is a step of it
    monkeypatch.setattr(fitness, "KEPT_BYTES", 2 * 24 * pico.VOCABULARY * 4 - 1)
    assert list(used()) == [4, 6]


def test_a_score_that_is_not_finite_names_a_remedy(source) -> None:
    teacher = teacher_of(source("qwen3"))
    targets = Targets(teacher, [(0, 24)])
    with pytest.raises(RequestError, match=r"search\.learning_rate.*--dtype float32"):
        targets.kl([teacher.hidden[:1] * torch.nan], teacher.head)
