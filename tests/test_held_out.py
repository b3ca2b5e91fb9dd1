"""Held out means held out: what one command scores no other trains on, however often a model is pruned and trained.

The truth is plain: sets of windows of tokens, of a text in which no window stands twice.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import darwinlm
import pico
from darwinlm.config import BlocksConfig
from darwinlm.data.blocks import make_splits
from darwinlm.data.lineage import Lineage
from darwinlm.data.stream import PackedStream
from darwinlm.data.tokens import read_pool
from darwinlm.data.windows import shared
from darwinlm.errors import RequestError
from darwinlm.measure.quality import Quality
from darwinlm.runtime.files import read_tensors
from training import TRAIN

WIDTH = 16
FITTED = ("hessian", "train", "select")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = ("".join(draw.choices("abcdefghijklmnop", k=draw.randrange(20, 90))) for _ in range(400))
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def windows(blocks: Any) -> set[tuple[int, ...]]:
    found = (tuple(row[i : i + WIDTH]) for row in blocks for i in range(len(row) - WIDTH + 1))
    return {window for window in found if pico.BYTES not in window}


def blocks(run: Path, *names: str) -> list[list[int]]:
    tensors, _ = read_tensors(run / "blocks.safetensors")
    return [row for name in names for row in tensors[name].tolist()]


@pytest.fixture
def trained_on(monkeypatch) -> list[list[int]]:
    """Every block that a training takes from its stream."""
    met: list[list[int]] = []
    stream = PackedStream.blocks

    def watched(self, *place):
        for tokens, bookmark in stream(self, *place):
            met.append(tokens.tolist())
            yield tokens, bookmark

    monkeypatch.setattr(PackedStream, "blocks", watched)
    return met


@pytest.fixture
def scored(monkeypatch) -> list[Tensor]:
    """What evaluations score."""
    met: list[Tensor] = []
    monkeypatch.setattr(
        "darwinlm.measure.evaluation.HeldOut", lambda tokens, dense, **more: met.append(tokens) or _Nothing()
    )
    return met


class _Nothing:
    def quality(self, stream: Any) -> Quality:
        return Quality(1, 1.0, None)


@pytest.fixture(scope="module")
def pruned(checkpoint, text, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("pruned") / "run"
    darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output=str(output), **pico.RUN)
    return output


def test_relative_names_count_from_where_a_run_was_made(checkpoint, text, tmp_path, monkeypatch):
    """Asked from elsewhere, the same runs lie behind a checkpoint, and a file of the same name is not their text."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
        monkeypatch.chdir(folder)
        shutil.copy(text, "text.jsonl")
    monkeypatch.chdir(home)
    shutil.copytree(checkpoint("llama_gqa"), "dense")
    darwinlm.prune("dense", data="text.jsonl", output="run", **pico.RUN)
    train(Path("run/model"), "text.jsonl", Path("trained"))
    known = Lineage(str(home / "trained/model"))
    for folder in (home, elsewhere):
        monkeypatch.chdir(folder)
        found = Lineage(str(home / "trained/model"))
        assert [run.folder for run in found.runs] == [run.folder for run in known.runs]
        assert torch.equal(found.ranges.rows, known.ranges.rows)
        assert (found.scored("text.jsonl") is not None) == (folder == home)
    assert found.scored(str(home / "text.jsonl")) is not None


def train(model: Path, data: Any, output: Path, **settings: Any) -> None:
    held = {"sequence_length": 32, "held_out": 4}
    darwinlm.train(str(model), data=str(data), output=str(output), blocks=held, train={**TRAIN, **settings})


def test_a_recipe_never_trains_on_what_it_scores(pruned, text, tmp_path, trained_on, scored):
    """prune, train, prune, train: one held-out text, that of the first run."""
    train(pruned / "model", text, tmp_path / "2")
    deeper = {**pico.RUN, "target": {"level": 3}}
    darwinlm.prune(str(tmp_path / "2/model"), data=str(text), output=str(tmp_path / "3"), **deeper)
    train(tmp_path / "3/model", text, tmp_path / "4", epochs=3)
    held = blocks(pruned, "held_out")
    for name in "234":
        assert blocks(tmp_path / name, "held_out") == held
    fitted = windows(blocks(pruned, *FITTED)) | windows(blocks(tmp_path / "3", *FITTED))
    assert len(windows(trained_on)) > 500
    assert not windows(held) & (windows(trained_on) | fitted)
    for data in (str(text), ""):
        darwinlm.evaluate(str(tmp_path / "4/model"), data=data)
        assert scored[-1].tolist() == held
    (other := tmp_path / "other.txt").write_text("zyxw" * 100)
    split = {"sequence_length": 32, "held_out": 2, "held_out_data": str(other)}
    darwinlm.evaluate(str(tmp_path / "4/model"), data=str(text), blocks=split)
    assert pico.tokenizer().decode(scored[-1].flatten().tolist()) in other.read_text()


@pytest.mark.parametrize("kind", ["copy", "text of another kind", "folder"])
def test_the_same_text_by_another_name(pruned, text, tmp_path, trained_on, scored, kind):
    """What was fitted to is not scored, and what is scored is not trained on."""
    other = tmp_path / "other"
    if kind == "copy":
        shutil.copy(text, other := other.with_suffix(".jsonl"))
    elif kind == "folder":
        other.mkdir()
        shutil.copy(text, other / "b.jsonl")
        (other / "a.txt").write_text("something else")
    else:
        rows = [json.loads(line)["text"] for line in text.read_text().splitlines()]
        (other := other.with_suffix(".txt")).write_text("\n".join(rows))
    held = {"sequence_length": 32, "held_out": 4}
    darwinlm.evaluate(str(pruned / "model"), data=str(other), blocks=held)
    assert not windows(scored[-1].tolist()) & windows(blocks(pruned, *FITTED))
    train(pruned / "model", other, tmp_path / "trained")
    own = blocks(tmp_path / "trained", "held_out")
    assert not windows(own) & (windows(trained_on) | windows(blocks(pruned, *FITTED)))
    if kind != "text of another kind":  # of other documents, it cannot be known what they hold
        assert not windows(blocks(pruned, "held_out")) & windows(trained_on)


def test_a_text_that_is_all_seen_is_refused(pruned, tmp_path):
    rows = [pico.tokenizer().decode(row) for row in blocks(pruned, *FITTED) if pico.BYTES not in row]
    (tmp_path / "seen.txt").write_text("".join(rows))
    with pytest.raises(RequestError, match="of which the model's runs have seen none"):
        darwinlm.evaluate(str(pruned / "model"), data=str(tmp_path / "seen.txt"), blocks={"sequence_length": 32})


def test_a_checkpoint_outside_a_run_has_no_lineage(pruned, tmp_path):
    shutil.copytree(pruned / "model", tmp_path / "model")
    assert not Lineage(str(tmp_path / "model")).runs
    assert not Lineage("owner/name").runs
    (run,) = Lineage(str(pruned / "model")).runs
    assert run.folder == pruned.resolve()


def test_a_family_member_lies_in_its_run(pruned):
    assert Lineage(str(pruned / "model")).runs[0].folder == pruned.resolve()
    member = pruned / "family" / "60%" / "model"
    member.mkdir(parents=True)
    assert Lineage(str(member)).runs[0].folder == pruned.resolve()
    shutil.rmtree(pruned / "family")


def test_repeated_rows_leave_text_to_train_on(tmp_path):
    """Held apart is the document that was read, not every one that equals it."""
    (tmp_path / "a.jsonl").write_text('{"text": "the very same words"}\n' * 50)
    pool = read_pool(["the very same words"] * 50, pico.tokenizer(), 10, 200)
    without = pool.ranges([0, 1, 2])
    stream = PackedStream(str(tmp_path / "a.jsonl"), "text", pico.tokenizer(), 10, 1, 0, without=without)
    assert 96 <= len(list(stream.blocks())) < 99 == 50 * 20 // 10 - 1


def test_shared_windows_are_found_at_every_offset():
    """Against sets of windows, in blocks of two lengths."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 5, (40, length), generator=generator) for length in (12, 20))
    truth = {tuple(row[i : i + 6]) for row in b.tolist() for i in range(15)}
    found = shared(a, [b])
    assert found.tolist() == [any(tuple(row[i : i + 6]) in truth for i in range(7)) for row in a.tolist()]
    assert 0 < found.sum() < 40
    assert not shared(a, []).any()


def test_a_new_held_out_split_shares_nothing_with_earlier_runs(pruned, text, tmp_path):
    lineage = Lineage(str(pruned / "model"))
    shutil.copy(text, tmp_path / "copy.jsonl")
    config = BlocksConfig(**{**pico.RUN["blocks"], "hessian": 8, "pool_tokens": 20_000})
    splits = make_splits(str(tmp_path / "copy.jsonl"), config, pico.tokenizer(), 0, lineage)
    assert not windows(splits.held_out.tolist()) & windows(blocks(pruned, *FITTED))
    assert not windows(splits.hessian.tolist()) & windows(blocks(pruned, "held_out"))
