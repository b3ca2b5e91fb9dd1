"""The exported checkpoint, loaded where DarwinLM does not exist: equal logits, equal text with and without a cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint

WITHOUT_US = """
import sys
sys.modules["darwinlm"] = None  # importing it would fail
import json, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
results = {}
tokens = load_file(sys.argv[1])["tokens"]
for folder in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("text")
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "DarwinLMModel"
    with torch.no_grad():
        results[folder + ":logits"] = model(tokens).logits
    for cache in (True, False):
        generated = model.generate(tokens[:, :8], attention_mask=torch.ones_like(tokens[:, :8]), max_new_tokens=12,
                                   do_sample=False, use_cache=cache, pad_token_id=0)
        results[folder + f":text {cache}"] = generated
save_file(results, sys.argv[1])
"""
ABSENT = {"first": 0, "middle": 1, "last": 2}


def some_genomes(database) -> dict[str, tuple[int, ...]]:
    """Random levels, and both modules absent in the first, middle and last layer."""
    ladders = database.ladders()
    genomes = {"mixed": tuple(min(1 + i % 3, ladder.top - 1) for i, ladder in enumerate(ladders))}
    for name, layer in ABSENT.items():
        genomes[name] = tuple(ladder.top if ladder.layer == layer else 1 for ladder in ladders)
    return genomes


@pytest.mark.parametrize("family", [*pico.FAMILIES, "qwen3_5_text"])
def test_checkpoints_load_without_darwinlm_and_are_equal(family, source, database, checkpoint, tmp_path):
    units = pico.UNITS if pico.is_grouped(family) else ("query_head",)
    expected, tokens = {}, pico.random_tokens(2, 16, seed=3)
    for unit in units:
        levels = database(family, unit)
        assembler = Assembler(source(family), levels)
        for name, genome in some_genomes(levels).items():
            folder = tmp_path / f"{unit}_{name}"
            export_checkpoint(assembler, genome, folder, {"target": "a test"}, {})
            with torch.no_grad():
                expected[str(folder)] = pico.zero_masked(checkpoint(family), levels, genome)(tokens).logits
    exchange = tmp_path / "exchange.safetensors"
    save_file({"tokens": tokens}, exchange)
    clean = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_US, exchange, *expected], capture_output=True, text=True
    )
    assert clean.returncode == 0, clean.stderr
    results = load_file(exchange)
    for folder, logits in expected.items():
        torch.testing.assert_close(results[f"{folder}:logits"], logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(results[f"{folder}:text True"], results[f"{folder}:text False"])


def test_weights_are_split_into_shards_with_an_index(source, database, tmp_path, monkeypatch):
    levels = database("llama_gqa", "kv_group")
    assembler = Assembler(source("llama_gqa"), levels)
    genome = some_genomes(levels)["mixed"]
    export_checkpoint(assembler, genome, tmp_path / "one", {}, {})
    monkeypatch.setattr("darwinlm.export.huggingface.SHARD_BYTES", 20_000)
    export_checkpoint(assembler, genome, tmp_path / "many", {}, {})
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one/model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], whole[name])


def test_the_folder_tells_its_story_and_holds_no_pickle(source, database, tmp_path):
    levels = database("qwen2", "kv_group")
    assembler = Assembler(source("qwen2"), levels)
    export_checkpoint(assembler, some_genomes(levels)["middle"], tmp_path / "model", {"seed": 7}, {})
    names = {path.name for path in Path(tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    card = (tmp_path / "model/README.md").read_text()
    assert "- seed: 7" in card
    assert "| 1 | 4 | 0 | 0 | 6 | 0 |" in card


def test_stock_code_refuses_a_checkpoint_with_absent_modules_loudly(source, database, tmp_path):
    """It does not know `skip`, and must not fill whole layers with random weights in silence."""
    levels = database("llama_gqa", "kv_group")
    ladders = levels.ladders()
    genome = tuple(ladder.top if ladder.layer == 1 else 0 for ladder in ladders)
    export_checkpoint(Assembler(source("llama_gqa"), levels), genome, tmp_path / "model", {}, {})
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["auto_map"]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    from transformers import LlamaForCausalLM

    with pytest.raises((RuntimeError, ValueError), match=r"per-layer|multiple|size mismatch"):
        LlamaForCausalLM.from_pretrained(tmp_path / "model")
