"""The portable form: stubs for absent modules, the same logits, a little larger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.export.portable import write_portable
from darwinlm.models.family import known_families
from darwinlm.models.heterogeneous import heterogeneous_config
from darwinlm.models.source import ModelSource

TOKENS = pico.random_tokens(2, 16, seed=3)


def pruned(folder: Path, family: str, source, database) -> Path:
    """A checkpoint that lacks its first attention, its middle MLP, and both modules of its last layer."""
    levels = database(family, "auto")
    gone = {"model.layers.0.self_attn", "model.layers.1.mlp", "model.layers.2.self_attn", "model.layers.2.mlp"}
    genome = tuple(ladder.top if ladder.name in gone else 1 for ladder in levels.ladders())
    export_checkpoint(Assembler(source(family), levels), genome, folder, {}, {"genome": "of a test"})
    return folder


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )


@pytest.mark.parametrize("family", [*pico.FAMILIES, "qwen3_moe", "mixtral"])
def test_it_computes_what_the_canonical_checkpoint_computes(family, source, database, tmp_path):
    folder = pruned(tmp_path / "model", family, source, database)
    canonical, portable = darwinlm.export_checkpoint(folder, portable=True).forms
    models = []
    for form in (canonical, portable):
        model, info = load(form.path)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert sum(p.numel() for p in model.parameters()) == form.parameters
        models.append(model.eval())
    with torch.no_grad():
        first, second = (model(TOKENS).logits for model in models)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    prompt = TOKENS[:, :8]
    texts = [
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        for model in models
    ]
    assert torch.equal(*texts)
    assert canonical.bytes < portable.bytes
    config = json.loads((portable.path / "config.json").read_text())
    assert not any("skip" in layer for layer in config["per_layer_config"].values())
    assert all(layer.self_attn.o_proj.in_features for layer in models[1].model.layers)


def test_where_no_module_is_absent_no_other_form_is_written(source, database, tmp_path, capsys):
    levels = database("llama_gqa", "auto")
    genome = tuple(1 for _ in levels.ladders())
    export_checkpoint(Assembler(source("llama_gqa"), levels), genome, tmp_path / "model", {}, {})
    main(["export", str(tmp_path / "model"), "--portable"])
    assert "No module is absent, so it is the portable form, too" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_stub_heads_can_be_split(source, database, tmp_path):
    """One head for each of four tensor-parallel ranks."""
    canonical = pruned(tmp_path / "model", "llama_gqa", source, database)
    write_portable(ModelSource(str(canonical)), tmp_path / "split", heads=4)
    widths = ModelSource(str(tmp_path / "split")).shape.layers[0]
    assert (widths.heads, widths.kv_heads, widths.intermediate) == (4, 4, 40)
    (first, _), (second, _) = load(canonical), load(tmp_path / "split")
    with torch.no_grad():
        torch.testing.assert_close(first.eval()(TOKENS).logits, second.eval()(TOKENS).logits, atol=1e-5, rtol=0)


def test_the_command_reports_all_forms(source, database, tmp_path, capsys):
    folder = pruned(tmp_path / "model", "llama_tied", source, database)
    pytest.importorskip("gguf")
    main(["export", str(folder), "--portable", "--format", "gguf", "--dtype", "bf16"])
    said = " ".join(capsys.readouterr().out.split())
    assert "canonical" in said
    assert "gguf bf16" in said
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model-portable", "model-gguf"}
    card = (tmp_path / "model-portable/README.md").read_text()
    assert "zero stubs" in card
    assert json.loads((tmp_path / "model-portable/darwinlm.json").read_text()) == {"genome": "of a test", "portable": 1}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format", "onnx"], "There is no format 'onnx'"),
        (["--format", "gguf", "--dtype", "q4_k"], "q4_k_s, q4_k_m"),
        (["--dtype", "f16"], "add --format gguf"),
        ([], "Nothing is asked for"),
    ],
)
def test_requests_that_cannot_be(arguments, reason, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(checkpoint("llama_gqa")), *arguments])
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_folder_that_is_not_ours_is_left_alone(source, database, tmp_path):
    folder = pruned(tmp_path / "model", "llama_tied", source, database)
    (tmp_path / "model-portable").mkdir()
    (tmp_path / "model-portable/thesis.txt").write_text("mine")
    with pytest.raises(darwinlm.RequestError, match="has not made"):
        darwinlm.export_checkpoint(folder, portable=True)
    assert (tmp_path / "model-portable/thesis.txt").read_text() == "mine"


def test_other_engines_find_what_they_look_for(source, database, tmp_path):
    """vLLM takes its Transformers backend for an architecture that it does not know, and builds it by AutoModel."""
    folder = pruned(tmp_path / "model", "qwen3", source, database)
    for form in darwinlm.export_checkpoint(folder, portable=True).forms:
        config = json.loads((form.path / "config.json").read_text())
        assert config["architectures"] == ["DarwinLMForCausalLM"]
        assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= config["auto_map"].keys()
        assert config["head_dim"] == 8
        text = (form.path / "modeling_darwinlm.py").read_text()
        assert all(f"class {name.split('.')[1]}(" in text for name in config["auto_map"].values())
        assert not any(path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle") for path in form.path.rglob("*"))
        for weights in form.path.glob("*.safetensors"):
            load_file(weights)


def test_vllm_finds_the_scale_of_the_logits():
    dense = pico.config("granite")
    assert dense.logits_scaling != 1.0
    config = heterogeneous_config(known_families()["granite"], dense, None)
    assert config.to_dict()["logit_scale"] == 1.0 / dense.logits_scaling


@pytest.mark.parametrize("form", [{"portable": True}, {"format": "gguf"}])
def test_a_full_disk_is_found_before_the_work(form, source, database, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    folder = pruned(tmp_path / "model", "llama_tied", source, database)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(darwinlm.RequestError, match=r"only .* are free"):
        darwinlm.export_checkpoint(folder, **form)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
