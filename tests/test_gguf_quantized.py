"""K-quants: bytes of llama.cpp's own quantizer, columns weighed by what they are fed, the numbers in real llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.gguf.importance import importance
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.formats import llama_cpp as quantizer
from darwinlm.models.source import ModelSource
from llama_cpp import Engine

gguf = pytest.importorskip("gguf")
DEMO_MODEL = Path(darwinlm.__file__).parent / "demo_model"
CPU = torch.device("cpu")
PROMPT = (
    "def read(self, path):\n    with open(path) as file:\n        return file.read()\n\n\ndef write(self, path, text"
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """The embedded model with layers of several widths, some modules gone."""
    folder = tmp_path_factory.mktemp("uneven")
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    layers = model.model.layers
    with torch.no_grad():
        layers[0].self_attn.o_proj.weight.zero_()
        layers[5].mlp.down_proj.weight.zero_()
        layers[2].self_attn.o_proj.weight[:, :128].zero_()
        layers[3].mlp.down_proj.weight[:, :384].zero_()
    model.save_pretrained(folder / "masked")
    for words in DEMO_MODEL.glob("tokenizer*"):
        (folder / "masked" / words.name).write_bytes(words.read_bytes())
    darwinlm.import_checkpoint(folder / "masked", folder / "model")
    return folder / "model"


def divergences(folder: Path, file: Path, tokens: list[int]) -> np.ndarray:
    """KL of what llama.cpp makes of a file, to transformers in float64, at the second half of the places."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64).eval()
    with torch.no_grad():
        truth = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    engine, found = Engine(file), []
    for place in range(len(tokens) // 2, len(tokens)):
        told = engine.log_probabilities(tokens[: place + 1], truth.shape[1], reuse=True).double()
        found.append(float((truth[place].exp() * (truth[place] - told)).sum()))
    return np.array(found)


@pytest.mark.parametrize(("dtype", "within"), [("q6_k", 5e-3), ("q4_k_m", 2e-2), ("q3_k_m", 5e-2)])
def test_layers_of_several_widths_keep_their_numbers(dtype, within, uneven, tmp_path):
    source = ModelSource(str(uneven))
    write_gguf(source, tmp_path / "model.gguf", dtype)
    assert divergences(uneven, tmp_path / "model.gguf", source.tokenizer(PROMPT)["input_ids"]).mean() < within


def test_columns_that_are_fed_most_are_rounded_least(uneven, tmp_path):
    source = ModelSource(str(uneven))
    weights = importance(source, torch.tensor([source.tokenizer(PROMPT)["input_ids"]]), CPU)
    files = {"exact": ("f32", {}), "plain": ("q4_k_m", {}), "weighed": ("q4_k_m", weights)}
    values = {}
    for name, (dtype, held) in files.items():
        write_gguf(source, tmp_path / f"{name}.gguf", dtype, held)
        tensors = gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors
        values[name] = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in tensors if t.name in weights}

    def error(name: str) -> float:
        return sum(float((weights[t] * (x - values[name][t]) ** 2).sum()) for t, x in values["exact"].items())

    assert error("weighed") < 0.9 * error("plain")


@pytest.mark.parametrize("family", ["llama_gqa", "qwen2", "qwen3_tied", "phi3"])
def test_importance_is_the_mean_square_of_what_stock_code_feeds_a_column(
    family, source, database, checkpoint, tmp_path
):
    levels, tokens = database(family, "auto"), pico.random_tokens(6, 20, seed=2)
    export_checkpoint(Assembler(source(family), levels), (0,) * len(levels.ladders()), tmp_path / "model", {}, {})
    found = importance(ModelSource(str(tmp_path / "model")), tokens, CPU)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64).eval()
    fed = {}
    for name, matrix in model.named_modules():
        if isinstance(matrix, torch.nn.Linear):
            matrix.register_forward_pre_hook(lambda m, given, name=name: fed.update({name: given[0]}))
    with torch.no_grad():
        model(tokens)
    ours = {
        "attn_q": "q_proj",
        "attn_k": "k_proj",
        "attn_v": "v_proj",
        "attn_output": "o_proj",
        "ffn_gate": "gate_proj",
    }
    ours |= {"ffn_up": "up_proj", "ffn_down": "down_proj", "attn_qkv": "q_proj"}
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    fused |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    assert len(found) == 3 * (5 if family == "qwen3_tied" else 7)
    for name, values in found.items():
        _, layer, part, _ = name.split(".")
        matrix = fused.get(ours[part], ours[part]) if family == "phi3" else ours[part]
        (given,) = (x for n, x in fed.items() if n.startswith(f"model.layers.{layer}.") and n.endswith(f".{matrix}"))
        np.testing.assert_allclose(values, given.flatten(0, 1).square().mean(0).numpy(), rtol=2e-4)


THEIRS = """
import ctypes, sys
try:
    import llama_cpp
    import gguf, numpy
except ImportError:
    sys.exit(77)
source, target, kind, weights = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]), 1
held = dict(numpy.load(weights))
entries = (llama_cpp.llama_model_imatrix_data * (len(held) + 1))()
for entry, (name, values) in zip(entries, held.items()):
    entry.name, entry.size = name.encode(), len(values)
    entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
if held:
    params.imatrix = entries
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""


@pytest.mark.parametrize("dtype", ["q3_k_m", "q4_k_s", "q4_k_m", "q6_k"])
def test_bytes_are_those_of_llama_quantize(dtype, uneven, tmp_path):
    """llama-cpp-python brings llama.cpp's own function for whole files, where it is installed."""
    source = ModelSource(str(uneven))
    weights = importance(source, torch.arange(256).view(2, 128), CPU)
    write_gguf(source, tmp_path / "f32.gguf", "f32")
    for held in ({}, weights):
        write_gguf(source, tmp_path / "ours.gguf", dtype, held)
        np.savez(tmp_path / "weights.npz", **held)
        files = [str(tmp_path / name) for name in ("f32.gguf", "theirs.gguf")]
        asked = [sys.executable, "-c", THEIRS, *files, dtype, str(tmp_path / "weights.npz")]
        done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
        if done.returncode == 77:
            pytest.skip("llama-cpp-python is not installed")
        assert done.returncode == 0, done.stderr[-2000:]
        ours, theirs = (
            {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
            for name in ("ours.gguf", "theirs.gguf")
        )
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.tensor_type == theirs[name].tensor_type, name
            np.testing.assert_array_equal(tensor.data, theirs[name].data, err_msg=name)


def test_the_command_names_the_file_after_the_model_and_says_its_size(uneven, tmp_path, capsys):
    folder = tmp_path / "reader/model"
    folder.parent.mkdir()
    subprocess.run(["cp", "-r", uneven, folder], check=True)
    told = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(told))
    asked = ["export", str(folder), "--format", "gguf", "--dtype", "q4_k_m"]
    (tmp_path / "text.txt").write_text(Path(json.__file__).read_text())
    main([*asked, "--data", str(tmp_path / "text.txt"), "--blocks.sequence_length", "128"])
    said = " ".join(capsys.readouterr().out.split())
    (file,) = folder.with_name("model-gguf").glob("*.gguf")
    parameters = gguf.size_label(ModelSource(str(folder)).shape.parameters, 0, 0, 0)
    assert file.name == f"reader-{parameters}-Q4_K_M.gguf"
    assert f"{file.stat().st_size / 1e6:.1f} MB" in said
    assert "All columns counted alike" not in said
    lines = file.with_name("Modelfile").read_text().splitlines()
    assert lines[:2] == [f"FROM ./{file.name}", 'PARAMETER stop "<|endoftext|>"']
    assert {"PARAMETER temperature 0.6", "PARAMETER top_p 0.9"} < set(lines)
    reader = gguf.GGUFReader(file)
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    main(asked)
    assert "All columns counted alike" in " ".join(capsys.readouterr().out.split())


def test_without_llama_cpp_it_is_refused_before_the_work(checkpoint, tmp_path, monkeypatch, capsys):
    folder = pico.make_checkpoint(tmp_path / "model", "llama_tied")
    monkeypatch.setattr(quantizer, "_LIBRARIES", {})
    quantizer.library.cache_clear()
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(folder), "--format", "gguf", "--dtype", "q4_k_m"])
    quantizer.library.cache_clear()
    assert exit_.value.code == 2
    assert "pip install 'darwinlm[llamacpp]'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
