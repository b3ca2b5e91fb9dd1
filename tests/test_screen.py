"""Untrained scores of many candidates at once against all logits of the masked stock model, in float64."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

import pico
from darwinlm import losses
from darwinlm.assemble import Assembler, GenomeStream
from darwinlm.config import SearchConfig
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.genome import Genome
from darwinlm.losses import token_kls
from darwinlm.models.source import ModelSource
from darwinlm.search import fitness
from darwinlm.search.fitness import Pools, Targets, Teacher, kls_to_teacher
from darwinlm.search.samples import draw
from darwinlm.search.screen import untrained_kls
from darwinlm.search.start import ModelMeasures

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


def scores_of(source: ModelSource, levels: Database, genomes: Sequence[Genome]) -> list[float]:
    targets = Targets(teacher_of(source), list(DRAWN))
    return [kls.mean().item() for kls in untrained_kls(Assembler(source, levels), genomes, targets, torch.float32)]


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
def test_scores_are_those_of_all_logits(family: str, unit: str, checkpoint, source, database) -> None:
    levels = database(family, unit)
    truth, genomes = truth_of(checkpoint(family), levels), family_of_genomes(levels, half(levels, 1, 4))
    genomes += [genomes[0], (0,) * 6, tuple(ladder.top for ladder in levels.ladders())]  # one of them twice
    assert scores_of(source(family), levels, genomes) == [close(truth(genome)) for genome in genomes]


def test_company_does_not_matter(source, database) -> None:
    """Bit for bit: a genome scores the same alone, and beside others that begin as it does."""
    levels = database("llama_gqa", "query_head")
    genomes = family_of_genomes(levels, half(levels, 2))
    alone = [scores_of(source("llama_gqa"), levels, [genome])[0] for genome in genomes]
    assert scores_of(source("llama_gqa"), levels, genomes) == alone
    assert scores_of(source("llama_gqa"), levels, genomes[::-1]) == alone[::-1]


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
    truth, genomes = truth_of(folder, levels), family_of_genomes(levels, half(levels))
    assert scores_of(source, levels, genomes) == [close(truth(genome)) for genome in genomes]


def test_small_batches_and_chunks_score_alike(checkpoint, source, database, monkeypatch) -> None:
    levels = database("qwen3_bias", "balanced")
    monkeypatch.setattr(fitness, "SCORING_TOKENS", 48)
    monkeypatch.setattr(losses, "CACHED_VALUES", 1)  # 16 tokens at a time: no divisor of a batch
    truth, genomes = truth_of(checkpoint("qwen3_bias"), levels), family_of_genomes(levels, half(levels))
    assert scores_of(source("qwen3_bias"), levels, genomes) == [close(truth(genome)) for genome in genomes]


def test_in_a_race_who_goes_on_scores_as_alone_and_the_best_does(source, database) -> None:
    """Of 32 sequences all see 8; who stops there is told to be behind the best."""
    dense, levels = source("llama_gqa"), database("llama_gqa", "query_head")
    tokens, config = pico.random_tokens(32, 8, seed=2), SearchConfig(start_tokens=256, sequence_tokens=8)
    teacher, assembler = (
        Teacher(tokens, pico.stream(dense).final_hidden(tokens), dense.head()),
        Assembler(dense, levels),
    )
    measures = ModelMeasures(assembler, Pools(tokens, teacher, pico.stream(dense)), config, 0)
    genomes = [(0,) * 6, *family_of_genomes(levels, half(levels)), tuple(ladder.top for ladder in levels.ladders())]
    raced = measures.kls(genomes)
    whole = Targets(teacher, draw(tokens, 256, 0, "start", 0, 0, 8))
    alone = [kls.mean().item() for kls in untrained_kls(assembler, genomes, whole, torch.float32)]
    reached = [raced[i] == close(alone[i]) for i in range(len(genomes))]
    best = min(range(len(genomes)), key=alone.__getitem__)
    assert reached[best]
    assert not all(reached)
    assert all(raced[i] >= raced[best] for i in range(len(genomes)))


def test_layers_that_are_alike_are_made_and_run_once(source, database, monkeypatch) -> None:
    """One batch; every layer once for all genomes that are the same up to it."""
    levels = database("llama_gqa", "kv_group")
    assembler, made, run = Assembler(source("llama_gqa"), levels), Counter(), Counter()
    original = GenomeStream.block

    def block(stream: GenomeStream, layer: int) -> nn.Module:
        made[layer] += 1
        found = original(stream, layer)
        found.register_forward_hook(lambda *_: run.update([layer]))
        return found

    monkeypatch.setattr(GenomeStream, "block", block)
    genomes = [half(levels), *(changed(levels, half(levels), place) for place in (0, 2, 3, 5))]
    targets = Targets(teacher_of(source("llama_gqa")), DRAWN[:2])
    untrained_kls(assembler, genomes, targets, torch.float32)
    assert run == {0: 2, 1: 4, 2: 5}
    assert made == {0: 2, 1: 3, 2: 2}


def hidden_of(assembler: Assembler, targets: Targets, genome: Genome) -> list[Tensor]:
    """Final hidden states of a genome's whole model, for each batch."""
    model = assembler.model(genome, pico.CPU)
    with torch.no_grad():
        return [model.model(input_ids=ids, use_cache=False).last_hidden_state for ids in targets.tokens()]


@pytest.mark.parametrize("chunked", [False, True])
def test_kept_distributions_and_those_made_again_give_the_same(source, database, monkeypatch, chunked: bool) -> None:
    """And the same as the plain loss between hidden states."""
    if chunked:
        monkeypatch.setattr(losses, "CACHED_VALUES", 1)
    levels, teacher = database("qwen3", "kv_group"), teacher_of(source("qwen3"))
    assembler, genome, kept = Assembler(source("qwen3"), levels), half(levels, 1), Targets(teacher, DRAWN)
    hidden, head = hidden_of(assembler, kept, genome), teacher.head
    monkeypatch.setattr(fitness, "KEPT_BYTES", 0)
    made_again = Targets(teacher, DRAWN)
    scores = [targets.token_kls(hidden, head).mean().item() for targets in (kept, kept, made_again, made_again)]
    assert len(set(scores)) == 1
    theirs = torch.cat([teacher.hidden[block, :length] for block, length in DRAWN])
    ours = torch.cat([batch.flatten(0, 1) for batch in hidden])
    assert scores[0] == pytest.approx(token_kls(theirs, ours, head, head).mean().item(), rel=1e-6)
    parts = kls_to_teacher(assembler.model(genome, pico.CPU), made_again, torch.float32)
    assert parts.mean().item() == pytest.approx(scores[0], rel=1e-12)


def test_distributions_are_made_once_where_they_are_kept(source, monkeypatch) -> None:
    teacher, calls = teacher_of(source("qwen3")), itertools.count()
    original = fitness.distributions

    def counted(*asked: Tensor) -> tuple[Tensor, Tensor]:
        next(calls)
        return original(*asked)

    def used() -> Iterator[int]:
        targets = Targets(teacher, [(0, 24), (1, 24)])
        for _ in range(2):
            assert targets.token_kls([teacher.hidden[:2]], teacher.head).mean().item() == pytest.approx(0, abs=1e-6)
            yield next(calls)

    monkeypatch.setattr(fitness, "distributions", counted)
    assert list(used()) == [1, 2]  # each look at the counter is a step of it
    monkeypatch.setattr(fitness, "KEPT_BYTES", 2 * 24 * pico.VOCABULARY * 4 - 1)
    assert list(used()) == [4, 6]


def test_a_score_that_is_not_finite_names_a_remedy(source) -> None:
    teacher = teacher_of(source("qwen3"))
    targets = Targets(teacher, [(0, 24)])
    with pytest.raises(RequestError, match=r"search\.learning_rate.*--dtype float32"):
        targets.token_kls([teacher.hidden[:1] * torch.nan], teacher.head)
