"""What `darwinlm train` refuses, as a user types it: exit code 2, the remedy, before anything is loaded or written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.export.huggingface import export_checkpoint
from test_export import some_genomes
from training import BATCH, BLOCKS, LENGTH, TRAIN, flags, write_text

FAMILY = "llama_gqa"


@pytest.fixture(autouse=True)
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*arguments: object, **options: object) -> None:
        raise AssertionError("long work began")

    monkeypatch.setattr("darwinlm.recovery.run._fit", begun)


@pytest.fixture
def text(tmp_path) -> Path:
    return write_text(tmp_path)


def refused(capsys, tmp_path, *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["train", *map(str, words), "--output", str(tmp_path / "run")])
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert not (tmp_path / "run/train").exists()
    return printed.err


def test_all_that_is_missing_at_once(capsys, tmp_path):
    said = refused(capsys, tmp_path)
    assert "No checkpoint is given" in said
    assert "No data is given" in said
    assert "No number of tokens is given: --tokens, such as 50M or 10B" in said


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"batch_tokens": 100}, "train.batch_tokens is 100, which are no whole sequences of train.sequence_length = 32. Set"),
        ({"micro_batch_sequences": 3}, "8 sequences, which 1 rank(s) with 3 at a time cannot share out evenly"),
        ({"warmup_steps": 6}, "train.warmup_steps is 6, but 1,536 tokens are only 6 steps"),
        ({"learning_rate": 0}, "train.learning_rate is 0; it must be more than 0"),
        ({"distill_weight": 1.5}, "train.distill_weight is 1.5; it must be at most 1"),
        ({"tokens": "many"}, "such as 50000000, 50M or 10B"),
        ({"sequence_length": 256, "batch_tokens": 256, "micro_batch_sequences": 1, "warmup_steps": 0},
         "reads at most 128 tokens at a time, but train.sequence_length is 256. Set train.sequence_length to 128 or less"),
        ({"hidden_weight": 1}, "but there is none: add train.teacher"),
        ({"teacher_logits": "logits"}, "it needs train.teacher and train.top_k"),
        ({"lora_targets": "wq", "method": "lora"}, "train.lora_targets names wq, which no layer"),
        ({"lora_targets": "lm_head", "method": "lora"}, "train.lora_targets names lm_head, which no layer"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(capsys, checkpoint, text, tmp_path, train, said):
    assert said in refused(capsys, tmp_path, checkpoint(FAMILY), "--data", text, *flags(**train))


def test_short_flags_are_checked_as_the_long_ones(capsys, checkpoint, text, tmp_path):
    words = [checkpoint(FAMILY), "--data", text, *flags()]
    assert "--tokens is '10BB'; it must be a number of tokens" in refused(capsys, tmp_path, *words, "--tokens", "10BB")
    assert "but 256 tokens are only 1 steps" in refused(capsys, tmp_path, *words, "--tokens", "256")


def test_too_few_tokens(capsys, checkpoint, text, tmp_path):
    said = refused(capsys, tmp_path, checkpoint(FAMILY), "--data", text, *flags(), "--tokens", "1M")
    assert "tokens in whole blocks of 32 to train on, but 1,000,192 are asked" in said
    assert "raise train.epochs" in said


def test_no_checkpoint(capsys, text, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(capsys, tmp_path, tmp_path / "empty", "--data", text, *flags())
    assert "There is no model folder" in refused(capsys, tmp_path, "./nowhere", "--data", text, *flags())


def test_the_portable_form(capsys, source, database, text, tmp_path):
    """Its stubs would count as heads of the result."""
    levels, folder = database(FAMILY, "kv_group"), tmp_path / "model"
    export_checkpoint(Assembler(source(FAMILY), levels), some_genomes(levels)["middle"], folder, {}, {})
    portable = darwinlm.export_checkpoint(str(folder), portable=True).forms[-1]
    said = refused(capsys, tmp_path, portable.path, "--data", text, *flags())
    assert "is the portable form of a checkpoint" in said
    assert "Take the checkpoint that it was made from" in said


def test_a_teacher_of_another_vocabulary(capsys, checkpoint, text, tmp_path):
    words = [checkpoint(FAMILY), "--data", text, *flags()]
    other = pico.make_checkpoint(tmp_path / "other", FAMILY, vocab_size=300)
    said = refused(capsys, tmp_path, *words, "--teacher", other)
    assert "have the same tokens, but embeddings of 300 and 264 rows: they are padded otherwise" in said
    same_size = tmp_path / "same_size"
    shutil.copytree(checkpoint(FAMILY), same_size)
    tokenizer = json.loads((same_size / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (same_size / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "does not have the vocabulary of" in refused(capsys, tmp_path, *words, "--teacher", same_size)


def test_a_teacher_that_cannot_be_compared(capsys, checkpoint, text, tmp_path):
    wide = pico.make_checkpoint(tmp_path / "wide", FAMILY, hidden_size=40)
    words = [checkpoint(FAMILY), "--data", text, *flags(teacher=wide, hidden_weight=0.5)]
    assert "compares hidden states layer by layer" in refused(capsys, tmp_path, *words)
    words = [checkpoint(FAMILY), "--data", text, *flags(teacher=checkpoint(FAMILY), top_k=1000)]
    assert "there are only 264 tokens" in refused(capsys, tmp_path, *words)


def test_an_output_that_holds_something_else(capsys, checkpoint, text, tmp_path):
    words = ["train", checkpoint(FAMILY), "--data", text, *flags(), "--output"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit):
        main([*map(str, words), str(tmp_path / "run")])
    assert "no run of DarwinLM" in capsys.readouterr().err
    pruning = tmp_path / "pruning"
    pruning.mkdir()
    (pruning / "genome.json").write_text("{}")
    (pruning / "config.yaml").write_text("model: x")
    with pytest.raises(SystemExit):
        main([*map(str, words), str(pruning)])
    assert "holds something that is no training" in capsys.readouterr().err
    assert (pruning / "config.yaml").read_text() == "model: x"


def test_the_output_of_another_checkpoint(capsys, checkpoint, text, tmp_path, monkeypatch):
    other = pico.make_checkpoint(tmp_path / "other", FAMILY, seed=5)
    output = tmp_path / "output"
    with pytest.raises(AssertionError, match="long work began"):
        darwinlm.train(str(checkpoint(FAMILY)), data=str(text), output=str(output), blocks=BLOCKS, train=TRAIN)
    for model, words, said in (
        (other, [], "(model: there"),
        (checkpoint(FAMILY), ["--train.learning_rate", "0.1"], "train.learning_rate: there 0.003, asked 0.1"),
    ):
        with pytest.raises(SystemExit):
            main(["train", str(model), "--data", str(text), *flags(), *words, "--output", str(output)])
        assert said in capsys.readouterr().err


def test_a_full_disk(capsys, checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10**5))
    said = refused(capsys, tmp_path, checkpoint(FAMILY), "--data", text, *flags())
    assert "This training needs" in said


def test_a_single_gpu_of_several_is_chosen_otherwise(capsys, checkpoint, text, tmp_path):
    said = refused(capsys, tmp_path, checkpoint(FAMILY), "--data", text, *flags(), "--device", "cuda:1")
    assert "CUDA_VISIBLE_DEVICES" in said


@pytest.mark.parametrize("place", ["run/model", "elsewhere"])
def test_where_the_result_goes_by_default(checkpoint, text, tmp_path, place):
    folder = tmp_path / place
    shutil.copytree(checkpoint(FAMILY), folder)
    if place == "run/model":
        (tmp_path / "run/config.yaml").write_text("seed: 0")
    with pytest.raises(AssertionError, match="long work began"):
        darwinlm.train(str(folder), data=str(text), blocks=BLOCKS, train=TRAIN)
    assert (
        tmp_path / ("run/trained" if place == "run/model" else "elsewhere-trained") / "train/identity.json"
    ).exists()


def test_the_text_that_is_held_out_is_not_trained_on(checkpoint, text, tmp_path):
    from darwinlm.config import resolve
    from darwinlm.recovery.request import Request

    asked = {"model": str(checkpoint(FAMILY)), "data": str(text), "blocks": BLOCKS, "train": TRAIN}
    request = Request(resolve(asked, without=("database", "target", "search", "bench")))
    ids = pico.tokenizer()(text.read_text())["input_ids"]
    assert request.scored.blocks.flatten().tolist() == ids[: BLOCKS["held_out"] * LENGTH]
    trained = {tuple(tokens.tolist()) for tokens, _ in request.stream.blocks()}
    assert tuple(ids[BLOCKS["held_out"] * LENGTH :][:LENGTH]) in trained
    assert len(trained) >= BATCH
