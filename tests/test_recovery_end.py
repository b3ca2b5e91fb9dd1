"""How a training ends: by its tokens, or by its text; then with what is there, or with more passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import darwinlm
from darwinlm.errors import RequestError
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
