"""Memory that a machine lacks is found before the work: from configurations alone, in one sentence with the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import darwinlm
import pico
from darwinlm.cli import main
from darwinlm.comparison.cells import later_training_need
from darwinlm.comparison.methods.registry import METHODS
from darwinlm.config import Tokens, TrainConfig, settled
from darwinlm.cost import database_need, search_need
from darwinlm.errors import RequestError
from darwinlm.models.source import ModelSource
from darwinlm.recovery.plan import training_cost, training_need
from darwinlm.run.plan import make_plan, predicted_work
from darwinlm.runtime import placement
from darwinlm.runtime.memory import Need, free_bytes, misfits, out_of_memory, require_memory

SHAPES = Path(__file__).parent.parent / "recipes" / "shapes"
CPU, GPU = torch.device("cpu"), torch.device("cuda")
TRAIN = {
    "blocks": {"sequence_length": 32, "held_out": 4},
    "train": {"tokens": 256, "sequence_length": 32, "batch_tokens": 64, "micro_batch_sequences": 2, "warmup_steps": 0},
}


def work_of(shape: str, device: torch.device, **settings):
    settings = {**settings, "search": {"generations": 200, **settings.get("search", {})}}
    config = settled({"model": str(SHAPES / shape), "target": {"level": 5}, **settings})
    return predicted_work(config, ModelSource(config.model, weights=False), device)


@pytest.fixture
def little(monkeypatch):
    """A machine with so little free memory."""

    def set_free(count: int) -> None:
        monkeypatch.setattr(placement, "free_host_memory", lambda: count)

    return set_free


# What is said


def test_what_does_not_fit_is_said_with_numbers_and_remedies():
    needs = [Need("The search", 40 * 10**9, 16 * 10**9, ("lower it",)), Need("The database", 1)]
    assert misfits(needs, "'cuda'", 24 * 10**9, 8 * 10**9) == [
        "The search needs 40.00 GB of memory on 'cuda', but 24.00 GB are there. To make it fit, lower it, or take a machine with "
        "more memory.",
        "The search needs 16.00 GB of memory on the host of each rank, but 8.00 GB are there. To make it fit, lower it, or take "
        "a machine with more memory.",
    ]
    assert misfits(needs, "'cuda'", 40 * 10**9, 16 * 10**9) == []
    assert misfits(needs, "'cuda'", None, None) == []


@pytest.mark.parametrize("fault", [OSError, AttributeError, ImportError, ValueError])
def test_memory_that_cannot_be_read_blocks_nothing(monkeypatch, fault):
    def unknown() -> int:
        raise fault("no such thing here")

    monkeypatch.setattr(placement, "free_host_memory", unknown)
    assert free_bytes(CPU) is None
    require_memory([Need("The search", 1 << 60)], CPU)


def test_ranks_of_one_machine_share_its_memory(monkeypatch, little):
    little(80)
    monkeypatch.setattr("darwinlm.runtime.ranks.local_world_size", lambda: 4)
    assert free_bytes(CPU) == 20


@pytest.mark.parametrize(
    ("fault", "ours"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_runs_out_on_the_way_is_one_sentence(fault, ours):
    assert bool(out_of_memory(fault)) == ours


# What is predicted


@pytest.mark.parametrize(("device", "weights"), [(CPU, 4), (GPU, 2)])
def test_needs_of_a_real_model(device, weights):
    """Lower bounds by hand: weights and moments, gradients, the head in float32; the dense weights where they lie."""
    work = work_of("llama-3.1-8b", device)
    dense, pruned, head = work.shape.parameters, work.pruned.parameters, 128256 * 4096 * 4
    stored = 2 * dense
    beside = stored if device == CPU else 0
    least = {
        search_need: 3 * weights * pruned,
        METHODS["sheared"].need: 16 * dense,
        METHODS["shortened_llama_taylor"].need: 8 * dense,
        later_training_need: 16 * pruned,
    }
    for need, bound in least.items():
        found = need(work)
        assert bound + head + beside <= found.device < 2 * (bound + head + beside), found.what
        assert found.host == (0 if device == CPU else stored)
    assert 4 * 4 * 14336**2 < database_need(work).device < 8e9


def test_what_takes_less_is_named_only_where_it_is_not_asked_for():
    asked = {"gradient_checkpointing": True, "batch_sequences": 1}
    whole, less = (search_need(work_of("llama-3.1-8b", CPU, search=search)) for search in ({}, asked))
    assert "set search.gradient_checkpointing to true" in whole.remedies
    assert "set search.gradient_checkpointing to true" not in less.remedies
    assert less.device < whole.device
    assert "choose --dtype bfloat16" in less.remedies
    assert "choose --dtype bfloat16" not in search_need(work_of("llama-3.1-8b", GPU)).remedies
    untrained = search_need(work_of("llama-3.1-8b", GPU, search={"train_tokens": [0, 0, 0, 0]}))
    assert untrained.device < 13e9


def test_a_live_teacher_takes_its_place():
    shape, train = work_of("llama-3.1-8b", GPU).shape, TrainConfig(tokens=Tokens("1B"))
    alone = training_need(shape, train, torch.bfloat16, 1, None, on_host=False)
    taught = training_need(shape, train, torch.bfloat16, 1, shape, on_host=False)
    assert alone.device == training_cost(shape, train, torch.bfloat16).memory_bytes
    assert taught.device - alone.device == 2 * shape.parameters + 4 * shape.vocabulary * shape.hidden
    assert alone.host == 4 * shape.parameters
    assert any("teacher_logits" in remedy for remedy in taught.remedies)


# Where it is asked


def test_prune_of_a_large_model_is_refused_without_its_weights(little, text, tmp_path):
    little(20 * 10**9)
    with pytest.raises(
        RequestError, match=r"The search needs .* on this machine, but 20\.00 GB .*gradient_checkpointing"
    ):
        darwinlm.prune(SHAPES / "llama-3.1-8b", data=text, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(checkpoint, text, tmp_path_factory):
    output = tmp_path_factory.mktemp("memory") / "run"
    settings = {**pico.RUN, "search": {**pico.RUN["search"], "generations": 1}}
    darwinlm.build_database(checkpoint("llama_gqa"), data=text, output=output, **settings)
    return output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("prune", "MODEL", "--data", "TEXT", "--output", "NEW"), "Building the database needs"),
        (("database", "MODEL", "--data", "TEXT", "--output", "NEW"), "Building the database needs"),
        (("search", "--output", "RUN"), "The search needs"),
        (
            ("compare", "MODEL", "--data", "TEXT", "--output", "NEW", "--methods", "sheared"),
            "ShearedLLaMA's training needs",
        ),
        (
            ("compare", "MODEL", "--data", "TEXT", "--output", "NEW", "--methods", "shortened_llama_taylor"),
            "Taylor estimate",
        ),
        (("compare", "MODEL", "--data", "TEXT", "--output", "NEW", "--train-tokens", "64"), "The post-training needs"),
        (("prune", "MODEL", "--data", "TEXT", "--output", "NEW", "--targets", "1,2"), "The search needs"),
        (("train", "MODEL", "--data", "TEXT", "--output", "NEW", "--tokens", "10K"), "The training needs"),
    ],
)
def test_every_command_asks_before_its_work(command, said, little, finished, checkpoint, text, tmp_path, capsys):
    little(1000)
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps(TRAIN if command[0] == "train" else pico.RUN))
    places = {"MODEL": checkpoint("llama_gqa"), "TEXT": text, "RUN": finished, "NEW": tmp_path / "new"}
    with pytest.raises(SystemExit) as exit_:
        main([*(str(places.get(word, word)) for word in command), "--config", str(settings)])
    told = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said in told
    assert "but 1.00 KB are there" in told
    assert not (tmp_path / "new").exists()


def test_what_is_done_needs_no_memory(finished, little, checkpoint, text):
    little(1000)
    with pytest.raises(RequestError) as fault:
        darwinlm.prune(checkpoint("llama_gqa"), data=text, output=finished, **pico.RUN)
    assert [message.split(" needs ")[0] for message in fault.value.faults] == ["The search", "The refit"]
    darwinlm.build_database(checkpoint("llama_gqa"), data=text, output=finished, **pico.RUN)


def test_the_plan_says_what_does_not_fit(little, capsys):
    little(20 * 10**9)
    model = str(SHAPES / "llama-3.1-8b")
    asked = {"model": model, "search": {"generations": 1}}
    assert make_plan(settled(asked)).misfits[0].startswith("The search needs")
    kinds = {kind: make_plan(settled({**asked, "plan": {"device": kind}})) for kind in ("RTX4090", "H200")}
    assert {plan.machine for plan in kinds.values()} == {"cuda, bfloat16"}
    assert len(kinds["RTX4090"].misfits) == 1
    assert "24.00 GB are there" in kinds["RTX4090"].misfits[0]
    assert kinds["H200"].misfits == []
    assert kinds["H200"].memory.refit > 8 * 7 * 14336**2  # sums of two sets of tokens in float64, and what OBS works on
    assert make_plan(settled({**asked, "refit": {"tokens": 0}})).memory.refit == 0
    main(["plan", model, "--search.generations", "1", "--plan.device", "RTX4090", "--plan.devices", "2"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Does not fit: The search needs" in told
    assert "Hours on 2 x RTX4090" in told
