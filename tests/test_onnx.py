"""A pruned checkpoint as an ONNX graph by PyTorch's own exporter: the logits of the model, for texts of any length."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import pico
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


class Logits(torch.nn.Module):
    """A model without a cache, as docs/howto/engines.md has it."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


@torch.no_grad()
def test_logits_of_an_onnx_graph(source, database, tmp_path):
    levels = database("qwen3_tied", "auto")
    genome = [ladder.top if ladder.name.endswith("1.self_attn") else 1 for ladder in levels.ladders()]
    export_checkpoint(Assembler(source("qwen3_tied"), levels), tuple(genome), tmp_path / "model", {}, {})
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", trust_remote_code=True, dtype=torch.float32, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter
        graph = torch.onnx.export(
            Logits(model.eval()),
            (pico.random_tokens(1, 16),),
            dynamo=True,
            dynamic_shapes=({1: torch.export.Dim("length", min=2, max=100)},),
            verbose=False,
        )
    graph.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for length in (9, 40):
        tokens = pico.random_tokens(1, length, seed=length)
        (found,) = session.run(None, {"input_ids": tokens.numpy()})
        torch.testing.assert_close(torch.as_tensor(found), model(tokens).logits, atol=2e-5, rtol=0)
