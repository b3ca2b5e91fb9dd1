"""Two processes with FSDP2, and with DDP, train as one does: the same curve, the same held-out text, one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import darwinlm
import darwinlm.cli
import pico
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.source import ModelSource
from test_export import some_genomes
from test_ranks import torchrun
from training import BLOCKS, STEPS, TRAIN, flags, history, losses, write_text

TOLERANCE = 5e-5
"""In nats, of losses near 5: sums over ranks are taken in another order."""

CHECK_FSDP = """
import sys
from darwinlm.recovery import trainer
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
def shared_out(self, *arguments, **options):
    layers = self.model.student.model.layers
    assert all(isinstance(layer, FSDPModule) for layer in layers), "layers are not wrapped one by one"
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in layers.parameters())
    return inner(self, *arguments, **options)
inner, trainer.Recovery.compute_loss = trainer.Recovery.compute_loss, shared_out
from darwinlm.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module", params=["llama_gqa", "qwen2_tied"])
def one_rank(request, source, database, checkpoint, tmp_path_factory) -> tuple[Path, list[str]]:
    """Distillation of a pruned checkpoint in one process, and its command line."""
    folder, family = tmp_path_factory.mktemp("one"), request.param
    levels = database(family, "kv_group")
    export_checkpoint(Assembler(source(family), levels), some_genomes(levels)["middle"], folder / "model", {}, {})
    text, train = write_text(folder), {**TRAIN, "teacher": str(checkpoint(family)), "micro_batch_sequences": 2}
    darwinlm.train(str(folder / "model"), data=str(text), output=str(folder / "run"), blocks=BLOCKS, train=train)
    words = flags(teacher=checkpoint(family), micro_batch_sequences=2)
    return folder, ["train", str(folder / "model"), "--data", str(text), *words]


def assert_same(two: Path, one: Path) -> None:
    assert losses(two) == pytest.approx(losses(one), abs=TOLERANCE)
    for ours, theirs in zip(history(two), history(one), strict=True):
        if "held_out" in ours:
            assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=1e-4)
    tokens = pico.random_tokens(2, 16)
    models = [
        AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32, trust_remote_code=True)
        for run in (two, one)
    ]
    with torch.no_grad():
        ours, theirs = (model(tokens).logits for model in models)
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)
    assert ModelSource(str(two / "model")).files.keys() == ModelSource(str(one / "model")).files.keys()


def test_two_ranks_with_fsdp_give_the_curve_of_one(one_rank, tmp_path):
    folder, command = one_rank
    (tmp_path / "check.py").write_text(CHECK_FSDP)
    done = torchrun(*command, "--output", tmp_path / "two", program=(tmp_path / "check.py",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as it was") == 1
    assert_same(tmp_path / "two", folder / "run")


@pytest.mark.parametrize("one_rank", ["llama_gqa"], indirect=True)
def test_two_ranks_that_each_hold_all_give_the_curve_of_one(one_rank, tmp_path):
    folder, command = one_rank
    done = torchrun(*command, "--train.fsdp", "false", "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "two", folder / "run")


FATAL = """
import os, signal, sys
from darwinlm.recovery import trainer
inner, calls = trainer.Recovery.compute_loss, 0
def fatal(self, *arguments, **options):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(self, *arguments, **options)
trainer.Recovery.compute_loss = fatal
from darwinlm.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("one_rank", ["llama_gqa"], indirect=True)
@pytest.mark.parametrize("again", [1, 2])
def test_a_killed_rank_ends_all_and_any_number_goes_on(one_rank, tmp_path, again):
    folder, command = one_rank
    (tmp_path / "fatal.py").write_text(FATAL)
    died = torchrun(*command, "--output", tmp_path / "two", program=(tmp_path / "fatal.py",))
    assert died.returncode != 0
    assert [path.name for path in (tmp_path / "two/train").glob("state-*")] == ["state-3"]
    if again == 1:
        darwinlm.cli.main([*command, "--output", str(tmp_path / "two")])
    else:
        done = torchrun(*command, "--output", tmp_path / "two")
        assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "two")) == STEPS
    assert_same(tmp_path / "two", folder / "run")


@pytest.mark.parametrize("one_rank", ["llama_gqa"], indirect=True)
def test_adapters_are_shared_out_too(one_rank, tmp_path):
    _, command = one_rank
    for name, run in (("one", darwinlm.cli.main), ("two", lambda words: torchrun(*words))):
        done = run([*command, "--lora", "--train.lora_rank", "2", "--output", str(tmp_path / name)])
        assert done is None or done.returncode == 0, done.stderr
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("one_rank", ["llama_gqa"], indirect=True)
def test_logits_on_disk_are_shared_out_too(one_rank, tmp_path):
    _, command = one_rank
    words = [*command, "--train.top_k", "7", "--output", str(tmp_path / "live")]
    darwinlm.cli.main(words)
    words[-1] = str(tmp_path / "two")
    done = torchrun(*words, "--train.teacher_logits", tmp_path / "logits")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "two", tmp_path / "live")
    assert json.loads((tmp_path / "logits/manifest.json").read_text())["shards"]
