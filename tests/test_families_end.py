"""From a dense checkpoint to a trained smaller one and its other forms, in families of different kinds."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.data.blocks import Splits
from darwinlm.errors import RequestError
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import read_tensors
from training import BLOCKS, TRAIN

NAMES = ["gemma3_text", "phi3", "olmo2", "granite", "cohere2", "qwen3_5_text"]


@pytest.mark.parametrize("name", NAMES)
def test_prune_train_evaluate_and_export(name, checkpoint, text, tmp_path) -> None:
    dense, run = checkpoint(name), tmp_path / "run"
    summary = darwinlm.prune(str(dense), data=str(text), output=str(run), **pico.RUN).summary
    assert summary["pruned"]["kl"] <= summary["uniform"]["kl"] * 1.2
    held_out = Splits.of(read_tensors(run / "blocks.safetensors")[0]).held_out
    assert (held_out[:, 0] == pico.BYTES).all() == (name == "gemma3_text")

    log_p, log_q = (
        log_softmax(load(folder)(held_out).logits.double(), -1).detach() for folder in (dense, run / "model")
    )
    kl = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean().item()
    assert summary["pruned"]["kl"] == pytest.approx(kl, rel=1e-3)

    scored = darwinlm.evaluate(str(run / "model"), against=str(dense))
    assert scored.qualities["model"].kl == pytest.approx(kl, rel=1e-3)

    stock = load(run / "model")
    assert summary["pruned"]["parameters"] == stock.num_parameters()
    forms = darwinlm.export_checkpoint(str(run / "model"), portable=True).forms
    portable = AutoModelForCausalLM.from_pretrained(forms[-1].path, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(portable(held_out).logits, stock(held_out).logits, atol=1e-4, rtol=1e-4)

    trained = darwinlm.train(
        str(run / "model"), data=str(text), output=str(tmp_path / "trained"), blocks=BLOCKS, train=TRAIN
    ).summary
    lines = [json.loads(line) for line in (tmp_path / "trained/train/history.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert trained["trained"]["perplexity"] < trained["before"]["perplexity"]
    assert ModelSource(str(tmp_path / "trained/model")).shape == ModelSource(str(run / "model")).shape


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("gemma2", "sheared", "ShearedLLaMA does not work on the family gemma2: gates cannot close modules in front"),
        ("qwen3_5_text", "shortgpt", "ShortGPT does not work on the family qwen3_5_text: it drops whole layers"),
    ],
)
def test_a_method_that_fails_on_a_family_is_refused_before_the_work(
    name, method, said, checkpoint, text, tmp_path
) -> None:
    asked = {"data": str(text), "output": str(tmp_path / "run"), "methods": f"uniform,{method}", "levels": "2"}
    with pytest.raises(RequestError, match=said):
        darwinlm.compare(str(checkpoint(name)), **asked, **pico.RUN)
    assert not (tmp_path / "run/database").exists()


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "granite", "cohere2", "smollm3", "arcee", "qwen3_5_text"])
def test_what_no_graph_of_llama_cpp_computes_is_refused(name, checkpoint) -> None:
    with pytest.raises(RequestError, match=r"no graph of llama\.cpp computes"):
        darwinlm.export_checkpoint(str(checkpoint(name)), format="gguf")
