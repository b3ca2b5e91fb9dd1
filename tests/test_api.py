"""The Python functions: examples of their docstrings, `load`, and what they promise of their results."""

from __future__ import annotations

import dataclasses
import doctest
import inspect

import torch
from transformers import AutoModelForCausalLM

import darwinlm
from darwinlm import show
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint


def test_examples_in_docstrings():
    found = doctest.testmod(darwinlm, extraglobs={"darwinlm": darwinlm})
    assert found.attempted >= 8
    assert not found.failed


@torch.no_grad()
def test_load_gives_the_model_that_its_own_code_gives(source, database, tmp_path):
    levels, tokens = database("qwen3", "auto"), torch.arange(12).view(2, 6)
    genome = tuple(i % (ladder.top + 1) for i, ladder in enumerate(levels.ladders()))
    export_checkpoint(Assembler(source("qwen3"), levels), genome, tmp_path / "model", {}, {})
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True, dtype=torch.float32)
    (tmp_path / "model/modeling_darwinlm.py").write_text("raise RuntimeError('this must not be run')")
    torch.testing.assert_close(darwinlm.load(tmp_path / "model")(tokens).logits, shipped(tokens).logits)


def test_every_function_returns_one_kind_of_result():
    for name in set(darwinlm.__all__) - {"load"}:
        function = getattr(darwinlm, name)
        if inspect.isfunction(function):
            kind = eval(str(inspect.signature(function).return_annotation), {"show": show})
            assert issubclass(kind, show.Result), name
            assert dataclasses.is_dataclass(kind)
            assert function.__doc__, name
