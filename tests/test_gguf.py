"""GGUF files in real llama.cpp: the same log-probabilities as the masked dense model, the same text as transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.errors import RequestError
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.llama_cpp import llama_cpp_faults
from darwinlm.models.source import ModelSource
from llama_cpp import Engine

DEMO_MODEL = Path(darwinlm.__file__).parent / "demo_model"
REFUSED = ("qwen3", "qwen3_bias")
CASES = [(family, unit) for family, unit in pico.FAMILIES_AND_UNITS if family not in REFUSED]
CASES += [(family, "auto") for family in ("seed_oss", "helium", "ernie4_5", "phi3")]
EXACT = 5e-6
TEXTS = (
    "def f(x):\n    return x\n",
    "  \n\n\t x \r\n\r\n y\r",
    "a  b   c    d, trailing  ",
    "can't we'll I'D 's's !!! ??? ... (x[0]->y)",
    "1234 567890 ١٢٣ ४५ ½ Ⅷ",
    "été naïve Straße ПРИВЕТ ὕδωρ",
    "日本語テスト 한국어 ไทย 😀🎉👩‍👩‍👧",
    "\u00a0nbsp \u3000wide \u2028sep \u200bzero x\u0085y \x00\x01\x1c\x1f",
    "\n",
    "",
)


def genomes(database) -> dict[str, tuple[int, ...]]:
    """Random levels, and both modules absent in the first, middle and last layer."""
    ladders = database.ladders()
    mixed = {"mixed": tuple(min(1 + i % 3, ladder.top - 1) for i, ladder in enumerate(ladders))}
    absent = {str(gone): tuple(l.top if l.layer == gone else 1 for l in ladders) for gone in range(3)}
    return mixed | absent


def convert(checkpoint: Path, dtype: str = "f32") -> Path:
    path = checkpoint.with_name(f"{checkpoint.name}.gguf")
    write_gguf(ModelSource(str(checkpoint)), path, dtype)
    return path


def expected(model, tokens: list[int]) -> torch.Tensor:
    """What transformers computes in float64, so that its own rounding does not count."""
    with torch.no_grad():
        return model.double()(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).float()


@pytest.mark.parametrize(("family", "unit"), CASES)
def test_log_probabilities_are_those_of_the_masked_dense_model(family, unit, source, database, checkpoint, tmp_path):
    levels, tokens = database(family, unit), pico.random_tokens(1, 24, seed=3)[0].tolist()
    assembler = Assembler(source(family), levels)
    for name, genome in genomes(levels).items():
        export_checkpoint(assembler, genome, tmp_path / name, {}, {})
        engine = Engine(convert(tmp_path / name))
        truth = expected(pico.zero_masked(checkpoint(family), levels, genome), tokens)
        cold = engine.log_probabilities(tokens, pico.VOCABULARY)
        torch.testing.assert_close(cold, truth, atol=EXACT, rtol=0)
        engine.log_probabilities(tokens[:17], pico.VOCABULARY)
        warm = engine.log_probabilities(tokens, pico.VOCABULARY, reuse=True)
        assert engine.reused == 17
        torch.testing.assert_close(warm, truth, atol=EXACT, rtol=0)


ALIKE = {
    "qwen3": {},
    "qwen3_tied": {},
    "qwen3_moe_normed": {"head_dim": 8},
    "mixtral": {},
    "olmoe": {"num_attention_heads": 4, "num_key_value_heads": 4},
}
"""Families that llama.cpp computes, or computes with a head of their own, only where all layers are alike; and their sizes."""


@pytest.mark.parametrize("family", ALIKE)
def test_layers_that_are_alike_have_graphs_of_their_own(family, tmp_path):
    dense = pico.make_checkpoint(tmp_path / "dense", family, **ALIKE[family])
    source, tokens = ModelSource(str(dense)), pico.random_tokens(1, 24, seed=3)[0].tolist()
    levels = pico.make_database(tmp_path / "database", source)
    genome = [l.top if l.layer == 1 else min(2, l.top - 1) for l in levels.ladders()]
    export_checkpoint(Assembler(source, levels), tuple(genome), tmp_path / "model", {}, {}, stock=True)
    with torch.no_grad():
        truth = pico.zero_masked(dense, levels, genome)(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
    found = Engine(convert(tmp_path / "model")).log_probabilities(tokens, pico.VOCABULARY)
    torch.testing.assert_close(found, truth, atol=EXACT, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe_normed"])
def test_layers_that_differ_are_refused_where_only_alike_ones_have_a_graph(family, tmp_path):
    source = ModelSource(str(pico.make_checkpoint(tmp_path / "dense", family)))
    levels = pico.make_database(tmp_path / "database", source)
    export_checkpoint(
        Assembler(source, levels), tuple(l.top * (l.layer == 1) for l in levels.ladders()), tmp_path / "m", {}, {}
    )
    with pytest.raises(RequestError, match=r"--target\.shape stock keeps them alike, for its graph `qwen3"):
        convert(tmp_path / "m")


def test_no_table_is_measured_where_llama_cpp_computes_alike_layers_alone(checkpoint, tmp_path):
    run = {
        "bench": {"engine": "llama.cpp", "context_lengths": [24], "decode_tokens": 5},
        "database": {"multiple_of": 16},
    }
    with pytest.raises(RequestError, match="ties the head to the embedding"):
        darwinlm.measure_latency(str(checkpoint("qwen3")), output=str(tmp_path / "table"), **run)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["llama_gqa", "qwen2"])
def test_scaled_rotary_embeddings(family, rope, tmp_path):
    parameters = {**ROPES[rope], "rope_theta": 500.0}
    path = pico.make_checkpoint(tmp_path / "model", family, head_dim=16, rope_parameters=parameters)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokens = pico.random_tokens(1, 100, seed=1)[0].tolist()
    found = Engine(convert(path)).log_probabilities(tokens, pico.VOCABULARY)
    torch.testing.assert_close(found, expected(model, tokens), atol=EXACT, rtol=0)


@pytest.mark.parametrize(("dtype", "within"), [("f16", 2e-2), ("bf16", 0.2), ("q8_0", 0.2)])
def test_other_dtypes_are_near(dtype, within, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    path = tmp_path / "demo.gguf"
    assert write_gguf(ModelSource(str(DEMO_MODEL)), path, dtype) == []
    tokens = list(range(300, 340))
    truth = expected(model, tokens)
    found = Engine(path).log_probabilities(tokens, len(truth))
    likely = truth.topk(50).indices
    torch.testing.assert_close(found[likely], truth[likely], atol=within, rtol=0)
    assert (
        path.stat().st_size
        < {"f16": 1.02, "bf16": 1.02, "q8_0": 0.55}[dtype] * DEMO_MODEL.joinpath("model.safetensors").stat().st_size
        + 200_000
    )  # the tokenizer


def test_rows_that_do_not_split_into_blocks_stay_f16_and_are_named(checkpoint, tmp_path):
    notes = write_gguf(ModelSource(str(checkpoint("llama_gqa"))), tmp_path / "model.gguf", "q8_0")
    assert "6 matrices are f16" in notes[0]  # 48 columns of o and of down in three layers
    assert "blk.0.attn_output.weight" in notes[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, Engine]:
    """The embedded model without its first attention, its last MLP, and half of the rest of two modules."""
    folder = tmp_path_factory.mktemp("demo")
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    layers = model.model.layers
    with torch.no_grad():
        layers[0].self_attn.o_proj.weight.zero_()
        layers[5].mlp.down_proj.weight.zero_()
        layers[2].self_attn.o_proj.weight[:, :128].zero_()
        layers[3].mlp.down_proj.weight[:, 1::2].zero_()
    model.save_pretrained(folder / "masked")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder / "masked")
    darwinlm.import_checkpoint(folder / "masked", folder / "model")
    _, form = darwinlm.export_checkpoint(folder / "model", format="gguf", dtype="f32").forms
    return folder / "masked", Engine(form.path, context=512)


def test_text_becomes_the_same_tokens(demo):
    folder, engine = demo
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source_code = Path(json.__file__).read_text(encoding="utf-8")
    for text in (*TEXTS, "a<|endoftext|>b", source_code, (DEMO_MODEL / "README.md").read_text(encoding="utf-8")):
        assert engine.tokenize(text) == tokenizer(text)["input_ids"], text[:80]


def test_text_in_text_out(demo):
    """Stock transformers on the masked model, llama.cpp on the GGUF file of the smaller one."""
    folder, engine = demo
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in ("def read(self, path):\n", "class A:\n    def", "import os\n\n\n"):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=0)
        written = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert engine.complete(prompt, 40) == written


REFUSALS = {
    "weights of experts": ("qwen3_moe", {}, "has `norm_topk_prob` False"),
    "keys of OLMoE": ("olmoe", {}, "fewer keys than the hidden size"),
    "clipped": ("olmoe", {"num_key_value_heads": 8, "clip_qkv": 3.0}, "clips queries"),
    "biases": ("qwen3_bias", {}, "attention biases"),
    "qwen3 rope": ("qwen3_tied", {"rope_parameters": ROPES["linear"] | {"rope_theta": 1e4}}, "RoPE of type 'linear'"),
    "dynamic rope": (
        "llama_gqa",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "change with the length",
    ),
    "activation": ("llama_gqa", {"hidden_act": "gelu"}, "activation 'gelu'"),
    "window": ("mistral", {"sliding_window": 16}, "`max_position_embeddings` to 16"),
    "qwen2 window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "last 16 tokens only",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case, tmp_path, capsys):
    family, overrides, reason = REFUSALS[case]
    path = pico.make_checkpoint(tmp_path / "model", family, **overrides)
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(path), "--format", "gguf"])
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    path = pico.make_checkpoint(tmp_path / "model", "mistral", sliding_window=128)
    assert llama_cpp_faults(ModelSource(str(path))) == []


def test_numbers_beyond_f16_are_refused_and_leave_no_file(tmp_path):
    model = pico.random_model("llama_gqa")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    pico.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError, match="beyond the range of f16"):
        convert(tmp_path / "model", "f16")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
