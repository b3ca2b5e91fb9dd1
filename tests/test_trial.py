"""The trial training of a candidate, and the tokens that it is trained and scored on."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from darwinlm.assemble import Assembler
from darwinlm.errors import RequestError
from darwinlm.search.samples import batches, draw
from darwinlm.search.trial import Trial, checkpoint_activations

FLOAT = torch.float32
TEXT = torch.arange(8 * 16).view(8, 16) % 11  # a short cycle: easy to learn


@pytest.fixture(scope="module", params=["llama_gqa", "qwen3_bias"])
def candidate(request: Any, source: Callable, database: Callable) -> Callable[..., Any]:
    """Makes the same pruned model anew: the middle level everywhere, the last MLP gone."""
    assembler = Assembler(source(request.param), database(request.param, "kv_group"))
    genome = tuple(ladder.top // 2 for ladder in assembler.space.ladders[:-1]) + (assembler.space.ladders[-1].top,)
    return lambda dtype=FLOAT: assembler.model(genome, torch.device("cpu"), dtype)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def loss_on(model: Any, tokens: Tensor) -> float:
    """Cross entropy of the next tokens, by all logits of the model itself."""
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


def whole(blocks: int, times: int = 1) -> list[tuple[int, int]]:
    return [(block, TEXT.shape[1]) for block in range(blocks)] * times


@pytest.mark.parametrize(("drawn", "rate"), [(whole(8), 0.0), ([], 1e-2)], ids=["no rate", "no tokens"])
def test_no_training_changes_nothing(candidate: Callable[..., Any], drawn: list[tuple[int, int]], rate: float) -> None:
    model = candidate()
    before = weights(model)
    Trial(model, rate, 2, FLOAT).train(TEXT, drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(model).items())


def test_dropout_is_the_same_for_all_and_after_a_pause(candidate: Callable[..., Any]) -> None:
    found = []
    for parts in ([whole(8)], [whole(8)], [whole(8)[:4], whole(8)[4:]]):
        trial = Trial(model := candidate(), 1e-2, 2, FLOAT)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        for part in parts:
            trial.train(TEXT, part)
            torch.rand(7)  # somebody else draws
        found.append(weights(model))
    without = candidate()
    Trial(without, 1e-2, 2, FLOAT).train(TEXT, whole(8))
    first, *others = found
    assert all(torch.equal(one[name], tensor) for one in others for name, tensor in first.items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in weights(without).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_lowers_the_loss_of_a_model_that_stays_pruned(
    candidate: Callable[..., Any], dtype: torch.dtype
) -> None:
    model = candidate()
    shapes = {name: tensor.shape for name, tensor in weights(model).items()}
    before = loss_on(model, TEXT)
    Trial(model, 3e-3, 2, dtype).train(TEXT, whole(8, times=6))
    assert loss_on(model, TEXT) < before - 0.3
    assert {name: tensor.shape for name, tensor in weights(model).items()} == shapes
    assert all(p.dtype == FLOAT for p in model.parameters())  # updates below a bfloat16 step are kept
    assert not model.training


def test_a_step_is_adamw_on_the_mean_loss_of_its_blocks(candidate: Callable[..., Any]) -> None:
    """Two steps, the second on a shorter piece, against a plain loop on the model's own logits."""
    ours, plain = candidate(), candidate().train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    for tokens in (TEXT[[5, 2]], TEXT[[3], :7]):
        logits = plain(input_ids=tokens, use_cache=False).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    Trial(ours, 1e-2, 2, FLOAT).train(TEXT, [(5, 16), (2, 16), (3, 7)])
    trained, truth = weights(ours), weights(plain)
    assert all(torch.allclose(trained[name], truth[name], atol=5e-5) for name in truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_the_same_every_time(candidate: Callable[..., Any], dtype: torch.dtype) -> None:
    trained = []
    for seed in (0, 1):  # of the global generator, which must not matter
        torch.manual_seed(seed)
        model = candidate(dtype)
        Trial(model, 1e-3, 2, dtype).train(TEXT, whole(6))
        trained.append(weights(model))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_loss_that_is_not_finite_names_the_learning_rate(candidate: Callable[..., Any]) -> None:
    with pytest.raises(RequestError, match=r"search\.learning_rate.*1e\+30"):
        Trial(candidate(), 1e30, 2, FLOAT).train(TEXT, whole(8))


def test_bfloat16_weights_learn_and_stay_bfloat16(candidate: Callable[..., Any]) -> None:
    model = candidate(torch.bfloat16)
    before = loss_on(model, TEXT)
    Trial(model, 3e-3, 2, torch.bfloat16).train(TEXT, whole(8, times=6))
    assert loss_on(model, TEXT) < before - 0.3
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_a_finished_trial_leaves_nothing_behind(candidate: Callable[..., Any], dtype, checkpointing) -> None:
    """No parameter and nothing that the optimizer kept, without the garbage collector."""

    def finished() -> list[weakref.ref]:
        model = candidate(dtype)
        if checkpointing:
            checkpoint_activations(model)
        trial = Trial(model, 1e-3, 2, dtype)
        trial.train(TEXT, whole(2))
        assert len(trial.tensors()) > 2 * len(list(model.parameters()))
        return [weakref.ref(tensor) for tensor in trial.tensors()]

    gc.disable()
    try:
        assert [left() for left in finished() if left() is not None] == []
    finally:
        gc.enable()


def test_bfloat16_weights_move_as_float32_ones_do_at_a_small_rate(candidate: Callable[..., Any]) -> None:
    """Along the float32 move, summed over all weights; rounded to the nearest, they would stay behind."""

    def moved(model: Any, train: Callable[[Any], None]) -> Tensor:
        before = torch.cat([p.detach().double().flatten() for p in model.parameters()])
        train(model)
        return torch.cat([p.detach().double().flatten() for p in model.parameters()]) - before

    def by_torch(model: Any) -> None:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, weight_decay=0.0)
        for block, _ in whole(8, times=3):
            logits = model(input_ids=TEXT[[block]], use_cache=False).logits.float()
            cross_entropy(logits[0, :-1], TEXT[block, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()

    def by_us(model: Any) -> None:
        Trial(model, 1e-5, 1, torch.bfloat16).train(TEXT, whole(8, times=3))

    truth, ours, nearest = (
        moved(candidate(dtype), train)
        for dtype, train in ((FLOAT, by_torch), (torch.bfloat16, by_us), (torch.bfloat16, by_torch))
    )
    shares = [((other * truth).sum() / truth.square().sum()).item() for other in (ours, nearest)]
    assert shares[0] == pytest.approx(1, abs=0.15)
    assert shares[1] < 0.3


# Tokens

POOL = torch.zeros(12, 7)


@given(tokens=st.integers(0, POOL.numel()), seed=st.integers(0, 2**40), stage=st.integers(0, 5))
def test_the_tokens_asked_for_are_drawn_without_replacement(tokens: int, seed: int, stage: int) -> None:
    """Only a single token left over is not drawn: it has no next one."""
    drawn = draw(POOL, tokens, seed, "train", 0, stage)
    assert sum(length for _, length in drawn) == tokens - (tokens % 7 == 1)
    assert len({block for block, _ in drawn}) == len(drawn)
    assert {block for block, _ in drawn} <= set(range(12))
    assert all(length == 7 for _, length in drawn[:-1])


def test_what_is_drawn_depends_on_its_place_in_the_search_alone() -> None:
    places = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "select", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)]
    drawn = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        drawn.append([tuple(draw(POOL, 60, *place)) for place in places])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == len(places)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(2, 4)), max_size=12), st.integers(1, 5))
def test_batches_are_the_drawn_blocks_in_order(drawn: list[tuple[int, int]], size: int) -> None:
    def unbatched() -> Iterator[tuple[int, int]]:
        for blocks, length in joined:
            yield from ((block, length) for block in blocks)

    joined = batches(drawn, size)
    assert list(unbatched()) == drawn
    assert all(1 <= len(blocks) <= size for blocks, _ in joined)
    mergeable = [a for a, b in itertools.pairwise(joined) if a[1] == b[1] and len(a[0]) < size]
    assert not mergeable  # no batch is smaller than it must be
