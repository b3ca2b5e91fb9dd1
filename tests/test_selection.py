"""Selection steps: what candidates are trained on, that training goes on as if it had never stopped, what is untrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

import pico
from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig, Stage
from darwinlm.cost import generation_tokens, survivors_tokens
from darwinlm.genome import Genome
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.search import selection
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Pools, Targets, Teacher, kls_to_teacher
from darwinlm.search.samples import draw, draw_parts
from darwinlm.search.selection import TrainedFitness
from darwinlm.search.trial import Trial
from test_screen import TOKENS, naive_kl

SEED, RATE, LENGTH = 3, 2e-3, 24
TRAIN = pico.random_tokens(8, LENGTH, seed=5)
CONFIG = SearchConfig(
    offspring=6,
    survivors=[3, 2, 1],
    train_tokens=[24, 60, 120],
    select_tokens=[30, 48, 72],
    sequence_tokens=0,
    learning_rate=RATE,
)
ANEW = replace(CONFIG, continue_training=False)
PARENT: Genome = (1, 3, 1, 3, 1, 3)
CHILDREN: list[Genome] = [
    (0, 3, 2, 3, 1, 3),
    (1, 2, 1, 4, 1, 3),
    (2, 3, 0, 3, 1, 3),
    (1, 3, 1, 0, 1, 6),
    (1, 4, 1, 3, 1, 2),
]


@pytest.fixture(scope="module")
def setting(source, database) -> tuple[Assembler, Teacher]:
    dense = source("llama_gqa")
    teacher = Teacher(TOKENS, pico.stream(dense).final_hidden(TOKENS), dense.head())
    return Assembler(dense, database("llama_gqa", "kv_group"), cache_bytes=1 << 20), teacher


def fitness_of(
    setting: tuple[Assembler, Teacher],
    config: SearchConfig = CONFIG,
    dtype: Any = torch.float32,
    survivor_bytes: tuple[int, int] | None = None,
) -> Any:
    assembler, teacher = setting
    pools = Pools(TRAIN, teacher, pico.stream(assembler.source))
    return TrainedFitness(assembler, pools, config, SEED, dtype, survivor_bytes)


def target(setting: tuple[Assembler, Teacher], generation: int, index: int) -> Targets:
    return Targets(setting[1], draw(TOKENS, CONFIG.select_tokens[index], SEED, "select", generation, index))


def trained_at_once(setting: Any, genome: Genome, generation: int, index: int, dtype: Any = torch.float32) -> float:
    """One uninterrupted training on the blocks of all steps so far, joined; then the score."""
    parts = draw_parts(TRAIN, CONFIG.train_tokens, SEED, "train", generation)
    blocks = [block for part in parts[: index + 1] for block in part]
    model = setting[0].model(genome, pico.CPU, dtype)
    trial = Trial(model, RATE, 1, dtype)
    trial.train(TRAIN, blocks)
    return kls_to_teacher(model, target(setting, generation, index), dtype).mean().item()


def scores_of(fitness: Any, candidates: list[Genome], stage: Stage, generation: int, index: int) -> list[float]:
    """Means of the parts that a fitness gives."""
    last = index == len(fitness.config.stages) - 1
    parts = fitness(Step(candidates, PARENT, stage, generation, index, last))
    return [each.mean().item() for each in parts]


def kl_to_teacher(model: Any, targets: Targets, dtype: Any) -> float:
    return kls_to_teacher(model, targets, dtype).mean().item()


def generation_of(fitness: Any, generation: int = 0) -> list[tuple[list[Genome], list[float]]]:
    """The calls of one generation: candidates and scores of each step."""
    candidates, steps = CHILDREN, []
    for index, stage in enumerate(fitness.config.stages):
        if index == len(fitness.config.stages) - 1:
            candidates = [*candidates, PARENT]
        scores = scores_of(fitness, candidates, stage, generation, index)
        steps.append((candidates, scores))
        best = sorted(range(len(candidates)), key=lambda i: scores[i])[: stage.survivors]
        candidates = [candidates[i] for i in best]
    return steps


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many optimizer steps were taken since the last time it was asked."""
    taken: list[Any] = []
    original = Trial._step

    def counted(self: Trial, tokens: Any, teacher: Any) -> None:
        taken.append(tokens)
        original(self, tokens, teacher)

    def since() -> int:
        count = len(taken)
        taken.clear()
        return count

    monkeypatch.setattr(Trial, "_step", counted)
    return since


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_continued_training_is_one_training(setting: Any, dtype: torch.dtype) -> None:
    """Bit for bit; also for the parent, which enters in the last step; and anew in the next generation."""
    fitness = fitness_of(setting, dtype=dtype)
    for generation in (0, 1):
        for index, (candidates, scores) in enumerate(generation_of(fitness, generation)):
            assert scores == [trained_at_once(setting, genome, generation, index, dtype) for genome in candidates]


def test_survivors_go_on_and_are_not_trained_anew(setting: Any, steps_taken: Callable[[], int]) -> None:
    """Blocks of 24: the steps add 24, 36 (two blocks) and 60 tokens (three), so 1, 2 and 3 optimizer steps."""
    fitness, taken = fitness_of(setting), []
    for index, stage in enumerate(CONFIG.stages):
        scores_of(fitness, CHILDREN[: (5, 3, 2)[index]], stage, 0, index)
        taken.append(steps_taken())
        assert len(fitness._survivors) <= stage.survivors  # of the others the memory is free
    # the first three need not be the three best: those that were forgotten catch up
    assert taken[0] == 5
    assert 3 * 2 <= taken[1] <= 3 * (1 + 2)
    generation_of(fitness, 1)
    assert steps_taken() == 5 * 1 + 3 * 2 + 2 * 3 + (1 + 2 + 3)
    assert fitness._survivors == {}


def test_the_forgotten_are_trained_anew_to_the_same_score(setting: Any) -> None:
    """As when a rank gets a candidate that another one trained so far."""
    whole, (first, second, third) = fitness_of(setting), CONFIG.stages
    scores_of(whole, CHILDREN, first, 0, 0)
    everyone = scores_of(whole, [*CHILDREN, PARENT], second, 0, 1)
    assert everyone == scores_of(fitness_of(setting), [*CHILDREN, PARENT], second, 0, 1)
    last = scores_of(whole, CHILDREN, third, 0, 2)
    assert last == scores_of(fitness_of(setting), CHILDREN, third, 0, 2)
    assert last == [trained_at_once(setting, genome, 0, 2) for genome in CHILDREN]


@pytest.mark.parametrize("tokens", [[24, 48, 96], [48, 48, 72], [72, 24, 48]])
def test_what_going_on_saves_is_foretold(setting: Any, steps_taken: Callable[[], int], tokens: list[int]) -> None:
    """In whole blocks, so that steps count tokens; a shorter step begins anew."""
    config = replace(CONFIG, offspring=len(CHILDREN), train_tokens=tokens)
    generation_of(fitness_of(setting, replace(config, continue_training=False)))
    anew = steps_taken() * LENGTH
    generation_of(fitness_of(setting, config))
    assert anew == generation_tokens(config)[0]
    assert steps_taken() * LENGTH == anew - survivors_tokens(config)


def test_training_anew_gives_the_same_scores(setting: Any, steps_taken: Callable[[], int]) -> None:
    """Bit for bit, with steps of 1, 1 + 2 and 1 + 2 + 3 blocks for everyone."""
    anew = fitness_of(setting, ANEW)
    assert [generation_of(anew, generation) for generation in (0, 1)] == [
        generation_of(fitness_of(setting), generation) for generation in (0, 1)
    ]
    steps_taken()
    for index, expected in [(0, 1), (1, 3), (2, 6), (0, 1)]:
        scores_of(anew, CHILDREN[:2], CONFIG.stages[index], 0, index)
        assert (steps_taken(), anew._survivors) == (2 * expected, {})


def test_memory_says_who_is_kept_and_not_what_comes_out(setting: Any) -> None:
    truth = generation_of(fitness_of(setting))
    model = setting[0].model(CHILDREN[0], pico.CPU)
    trial = Trial(model, RATE, 1, torch.float32)
    trial.train(TRAIN, [(0, LENGTH)])
    assert trial.bytes == pytest.approx(3 * sum(p.nbytes for p in model.parameters()), rel=1e-3)  # and two moments
    kept = {}
    one = trial.bytes * 3 // 2
    for room in ((0, 0), (one, 0), (0, one), (one, one), None):
        fitness = fitness_of(setting, survivor_bytes=room)
        assert generation_of(fitness) == truth
        scores_of(fitness, CHILDREN, CONFIG.stages[0], 1, 0)
        waiting = [survivor.trial.waits for survivor in fitness._survivors.values()]
        kept[room] = (waiting.count(False), waiting.count(True))
    assert list(kept.values()) == [(0, 0), (1, 0), (0, 1), (1, 1), (CONFIG.survivors[0], 0)]


def test_a_space_without_children_has_nothing_to_score(setting: Any) -> None:
    assert scores_of(fitness_of(setting), [], CONFIG.stages[0], 0, 0) == []


def test_steps_may_be_as_long_as_the_one_before_or_shorter(setting: Any, steps_taken: Callable[[], int]) -> None:
    """A step as long costs its survivors nothing more; for a shorter one they begin anew."""
    config = replace(CONFIG, train_tokens=[60, 60, 24])
    fitness, anew = fitness_of(setting, config), fitness_of(setting, replace(config, continue_training=False))
    for index, expected in enumerate((1 + 2, 0, 1)):
        scores = scores_of(fitness, CHILDREN[:1], config.stages[index], 0, index)
        assert steps_taken() == expected
        assert scores == scores_of(anew, CHILDREN[:1], config.stages[index], 0, index)
        steps_taken()


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize(("tokens", "rate"), [(0, RATE), (24, 0.0)], ids=["no tokens", "no rate"])
def test_untrained_candidates_are_screened(setting: Any, checkpoint, monkeypatch, tokens, rate, continued) -> None:
    """Their score is that of the untrained model, and of all logits of the masked one."""
    assembler, _ = setting
    config = replace(CONFIG, train_tokens=[tokens, 60, 120], learning_rate=rate, continue_training=continued)
    with monkeypatch.context() as patched:
        patched.setattr(selection, "kls_to_teacher", None)  # neither a whole model nor a training
        patched.setattr(selection, "Trial", None)
        scores = scores_of(fitness_of(setting, config), [*CHILDREN, PARENT], config.stages[0], 0, 0)
    targets = target(setting, 0, 0)
    drawn = [(block, length) for blocks, length in targets.batches for block in blocks]
    dense = pico.zero_masked(checkpoint("llama_gqa"), assembler.database, (0,) * 6)
    for genome, score in zip([*CHILDREN, PARENT], scores, strict=True):
        whole = kls_to_teacher(assembler.model(genome, pico.CPU), targets, torch.float32).mean().item()
        masked = pico.zero_masked(checkpoint("llama_gqa"), assembler.database, genome)
        assert score == pytest.approx(whole, rel=1e-5)
        assert score == pytest.approx(naive_kl(dense, masked, drawn), rel=1e-5)


@pytest.mark.parametrize("sequence_tokens", [0, 6])
@pytest.mark.parametrize("rate", [0.0, RATE], ids=["untrained", "trained"])
def test_scores_are_given_by_sequences(setting: Any, rate: float, sequence_tokens: int) -> None:
    """Against all logits in float64: 30 tokens of blocks of 24, or the first six of five or more blocks."""
    config = replace(CONFIG, learning_rate=rate, sequence_tokens=sequence_tokens)
    found = fitness_of(setting, config)(Step(CHILDREN[:2], PARENT, config.stages[0], 0, 0, False))
    drawn = draw(TOKENS, 30, SEED, "select", 0, 0, sequence_tokens)
    assert sum(length for _, length in drawn) == 30
    assert found.shape == (2, len(drawn)) == (2, 5 if sequence_tokens else 2)
    dense = setting[0].model((0,) * 6, pico.CPU)
    share = len(drawn) / 30
    for genome, kls in zip(CHILDREN[:2], found):
        model = setting[0].model(genome, pico.CPU)
        Trial(model, rate, 1, torch.float32).train(TRAIN, draw_parts(TRAIN, CONFIG.train_tokens, SEED, "train", 0)[0])
        truth = [share * length * naive_kl(dense, model, [(block, length)]) for block, length in drawn]
        assert kls.tolist() == pytest.approx(truth, rel=1e-4)


def test_a_trial_that_waited_goes_on_as_if_it_had_not(setting: Any) -> None:
    """Tied weights stay tied, and the optimizer's state with its parameters."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for waits in (False, True):
            trial = Trial(setting[0].model(CHILDREN[0], pico.CPU, dtype), RATE, 1, dtype)
            trial.train(TRAIN, [(0, LENGTH)])
            size, before = trial.bytes, [tensor.data_ptr() for tensor in trial.tensors()]
            if waits:
                trial.wait()
                assert {tensor.data_ptr() for tensor in trial.tensors()}.isdisjoint(before)
                assert trial.bytes == size
                trial.come_back()
            trial.train(TRAIN, [(1, LENGTH)])
            results.append([tensor.clone() for tensor in trial.tensors()])
        assert all(map(torch.equal, results[-2], results[-1]))


def test_a_screened_step_before_continued_training_counts_nothing(setting: Any) -> None:
    config = replace(CONFIG, train_tokens=[0, 60, 120])
    fitness = fitness_of(setting, config)
    scores_of(fitness, CHILDREN, config.stages[0], 0, 0)
    (score,) = scores_of(fitness, CHILDREN[:1], config.stages[1], 0, 1)
    model = setting[0].model(CHILDREN[0], pico.CPU)
    Trial(model, RATE, 1, torch.float32).train(TRAIN, draw_parts(TRAIN, [60], SEED, "train", 0)[0])
    assert score == kls_to_teacher(model, target(setting, 0, 1), torch.float32).mean().item()


# The name that is not deprecated is younger than the oldest transformers that we support.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("continued", [False, True])
def test_gradient_checkpointing_scores_alike(setting: Any, continued: bool) -> None:
    config = replace(CONFIG, continue_training=continued)
    plain = generation_of(fitness_of(setting, config))
    saving = generation_of(fitness_of(setting, replace(config, gradient_checkpointing=True)))
    for (candidates, scores), (same, others) in zip(plain, saving, strict=True):
        assert candidates == same
        assert scores == pytest.approx(others, rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("float32", torch.float32),
        ("float32", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
    ],
)
def test_weights_are_of_the_asked_dtype_whatever_the_arithmetic(setting: Any, weights: Any, dtype: Any) -> None:
    config = replace(CONFIG, weights=weights)
    fitness = fitness_of(setting, config, dtype)
    scores = scores_of(fitness, CHILDREN[:2], config.stages[0], 0, 0)
    kept = [survivor.trial.model for survivor in fitness._survivors.values()]
    assert {p.dtype for model in kept for p in model.parameters()} == {getattr(torch, weights)}
    assert scores == pytest.approx([trained_at_once(setting, genome, 0, 0) for genome in CHILDREN[:2]], rel=0.05)


def test_distilled_candidates_are_trained_on_the_dense_model_of_their_own_blocks(setting: Any) -> None:
    """Against a plain loop of AdamW on KL from all logits of both models."""
    config = replace(CONFIG, training="distillation")
    (score,) = scores_of(fitness_of(setting, config), CHILDREN[:1], config.stages[0], 1, 0)
    dense, model = (setting[0].model(genome, pico.CPU) for genome in ((0,) * 6, CHILDREN[0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for block, length in draw_parts(TRAIN, CONFIG.train_tokens, SEED, "train", 1)[0]:
        tokens = TRAIN[[block], :length]
        ours, truth = (one(tokens, use_cache=False).logits[0].log_softmax(-1) for one in (model, dense))
        kl_div(ours, truth.detach(), reduction="batchmean", log_target=True).backward()
        optimizer.step()
        optimizer.zero_grad()
    truth = kls_to_teacher(model, target(setting, 1, 0), torch.float32).mean().item()
    assert score == pytest.approx(truth, rel=1e-4)


def test_refitted_candidates_are_those_of_the_refit(setting: Any, tmp_path: Path) -> None:
    config, (assembler, _) = replace(CONFIG, training="refit"), setting
    scores = scores_of(fitness_of(setting, config), CHILDREN, config.stages[2], 0, 2)
    blocks = [
        b for part in draw_parts(TRAIN, CONFIG.train_tokens, SEED, "train", 0) for b, had in part if had == LENGTH
    ]
    for genome, score in zip(CHILDREN[:2], scores):
        refits, model = Refits(tmp_path / str(genome), {}), assembler.model(genome, pico.CPU)
        pruned = assembler.stream(genome, pico.CPU, torch.float32)
        stream = pico.stream(assembler.source)
        refit_blocks(refits, stream, pruned, partial(assembler.mlp_columns, genome), TRAIN[blocks], 1)
        refits.load_into(model)
        assert score == kls_to_teacher(model, target(setting, 0, 2), torch.float32).mean().item()
