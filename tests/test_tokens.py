"""Token counts as people write them, on the command line, in YAML and in files of settings."""

from __future__ import annotations

import json

import pytest
import yaml

from darwinlm.cli import read
from darwinlm.config import RunConfig, Tokens, preset_values, resolve, to_dict
from darwinlm.errors import RequestError

SPELLED = [("10B", 10**10), ("50M", 50_000_000), ("300k", 300_000), ("1.5M", 1_500_000), ("2T", 2 * 10**12), ("7", 7)]


@pytest.mark.parametrize(("text", "number"), [*SPELLED, ("1e6", 10**6), ("262_144", 262_144), (12, 12), (3e5, 300_000)])
def test_what_is_understood(text, number):
    assert Tokens(text) == number
    assert resolve({"train": {"tokens": text, "warmup_steps": 0}}).train.tokens == number


@pytest.mark.parametrize("text", ["", "10BB", "-5", "ten", "1.5", "0.0001K", "B", True])
def test_what_is_not(text):
    with pytest.raises(ValueError, match=r"no number of tokens|no whole number"):
        Tokens(text)


def test_the_command_line_and_its_fault():
    assert resolve({"train": read("train", ["--train.tokens", "10B"]).arguments["train"]}).train.tokens == 10**10
    assert read("train", ["--tokens=1.5M"]).arguments["tokens"] == 1_500_000
    with pytest.raises(RequestError, match="such as 50000000, 50M or 10B"):
        resolve({"train": {"tokens": "many"}})


def test_they_are_kept_as_plain_numbers():
    config = resolve({"train": {"tokens": "50M", "warmup_steps": 2}})
    plain = to_dict(config)
    assert type(plain["train"]["tokens"]) is int
    assert yaml.safe_load(yaml.safe_dump(plain)) == json.loads(json.dumps(plain)) == plain
    assert resolve(plain) == config


def test_the_paper_trains_as_it_says():
    """arXiv 2502.07780, section 4."""
    train = resolve(preset_values("paper")).train
    assert (train.tokens, train.sequence_length, train.batch_sequences) == (10**10, 4096, 1024)
    assert (train.learning_rate, train.schedule, train.warmup_steps, train.weight_decay) == (1e-4, "cosine", 50, 0)
    assert (train.method, train.teacher, train.steps) == ("full", "", 2385)


def test_without_tokens_other_commands_have_no_fault():
    assert resolve({}).train == RunConfig().train
