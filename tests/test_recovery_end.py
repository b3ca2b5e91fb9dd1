"""How a training ends: by its tokens, or by its text; then with what is there, or with more passes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import darwinlm
from darwinlm.errors import RequestError
from darwinlm.recovery.trainer import Recovery
from training import BATCH, BLOCKS, LENGTH, STEPS, TRAIN, history, losses

FAMILY = "llama_gqa"
ENOUGH = (STEPS - 2) * BATCH * LENGTH + 5 * LENGTH + 50  # for four steps of six, and the held-out blocks


@pytest.fixture
def short(tmp_path, monkeypatch) -> Path:
    """Text that ends on the way, where counting stops before it is known."""
    from darwinlm.data.stream import PackedStream

    monkeypatch.setattr(PackedStream, "require", lambda self, needed: None)
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number} and {number * number}; " for number in range(400))[:ENOUGH])
    return path


def train(checkpoint, text: Path, output: Path, **settings):
    asked = {**TRAIN, "schedule": "constant", "warmup_steps": 0, "save_every_tokens": 10**9, **settings}
    return darwinlm.train(
        str(checkpoint(FAMILY)), data=str(text), output=str(output), blocks=BLOCKS, train=asked
    ).summary


@pytest.fixture
def ended(checkpoint, short, tmp_path) -> Path:
    output = tmp_path / "run"
    with pytest.raises(
        RequestError, match=rf"state of step 4 is saved.*epochs 2; with --tokens {4 * BATCH * LENGTH} it ends"
    ):
        train(checkpoint, short, output)
    assert [path.name for path in (output / "train").glob("state-*")] == ["state-4"]
    return output


def test_its_last_state_becomes_the_result(ended, checkpoint, short, tmp_path, monkeypatch):
    monkeypatch.setattr("darwinlm.recovery.run._fit", None)
    summary = train(checkpoint, short, ended, tokens=4 * BATCH * LENGTH)
    assert (summary["steps"], summary["tokens"]) == (4, 4 * BATCH * LENGTH)
    assert (ended / "model/model.safetensors").exists()
    monkeypatch.undo()
    whole = train(checkpoint, short, tmp_path / "whole", tokens=4 * BATCH * LENGTH)
    assert (ended / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model/model.safetensors").read_bytes()
    assert whole["trained"] == summary["trained"]


def test_more_passes_go_on(ended, checkpoint, short, tmp_path):
    """To the same bytes as if they had been asked for at once."""
    train(checkpoint, short, ended, epochs=2)
    train(checkpoint, short, tmp_path / "whole", epochs=2)
    assert len(losses(ended)) == STEPS
    assert losses(ended) == losses(tmp_path / "whole")
    assert (ended / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model/model.safetensors").read_bytes()


def test_more_tokens_have_the_rates_of_the_longer_schedule(checkpoint, short, tmp_path, monkeypatch):
    """From the first step on after a kill."""
    monkeypatch.setattr(Recovery, "_save_checkpoint", killed_after(3))
    asked = {"schedule": "cosine", "save_every_tokens": BATCH * LENGTH}
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, short, tmp_path / "run", tokens=4 * BATCH * LENGTH, **asked)
    monkeypatch.undo()
    rates, step = [], torch.optim.AdamW.step

    def noted(self, *others, **more):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *others, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train(checkpoint, short, tmp_path / "run", tokens=5 * BATCH * LENGTH, epochs=2, **asked)
    truth = [TRAIN["learning_rate"] * (1 + math.cos(math.pi * done / 5)) / 2 for done in (3, 4)]
    assert rates[-2:] == pytest.approx(truth)


def killed_after(last: int):
    save = Recovery._save_checkpoint

    def fatal(self, *others):
        save(self, *others)
        if self.state.global_step == last:
            raise KeyboardInterrupt

    return fatal


@pytest.mark.parametrize("step", [2, 3])
def test_weights_that_are_no_numbers_are_not_kept(step, checkpoint, short, tmp_path, monkeypatch):
    """A gradient overflows where the loss did not, in the middle and in the last step: the state before stays."""
    ordinary = Recovery.training_step

    def training_step(self, model, *others):
        loss = ordinary(self, model, *others)
        if self.state.global_step == step - 1:
            next(one for one in model.parameters() if one.grad is not None).grad.view(-1)[0] = math.nan
        return loss

    monkeypatch.setattr(Recovery, "training_step", training_step)
    asked = {"tokens": 3 * BATCH * LENGTH, "save_every_tokens": BATCH * LENGTH}
    with pytest.raises(RequestError, match=rf"After step {step}, \d+ of \d+ trained weights hold NaN"):
        train(checkpoint, short, tmp_path / "run", **asked)
    assert not (tmp_path / "run/model").exists()
    monkeypatch.setattr(Recovery, "training_step", ordinary)
    train(checkpoint, short, tmp_path / "run", **asked)
    train(checkpoint, short, tmp_path / "whole", **asked)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_fewer_tokens_than_are_done_end_it_now(ended, checkpoint, short):
    assert train(checkpoint, short, ended, tokens=2 * BATCH * LENGTH)["steps"] == 4


def test_a_finished_training_does_not_go_on(ended, checkpoint, short):
    train(checkpoint, short, ended, tokens=4 * BATCH * LENGTH)
    with pytest.raises(RequestError, match=r"has ended after 4 steps .* 6 are asked\. Train its result further"):
        train(checkpoint, short, ended)
    done = json.loads((ended / "summary.json").read_text())
    assert train(checkpoint, short, ended, tokens=BATCH * LENGTH) == done
    assert history(ended)


@pytest.mark.parametrize(
    ("tracker", "said"),
    [("wandbb", "transformers does not know. It knows: .*wandb"), ("wandb", "cannot be used here")],
)
def test_trackers_are_asked_before_any_work(checkpoint, short, tmp_path, monkeypatch, tracker, said):
    monkeypatch.setattr("darwinlm.recovery.run._fit", None)
    with pytest.raises(RequestError, match=f"'{tracker}', (which )?{said}"):
        train(checkpoint, short, tmp_path / "x", report_to=[tracker])
    assert not (tmp_path / "x").exists()
