"""GGUF files become checkpoints that compute, cut text and end as the model did that the file was made from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import read_tensors
from test_gguf import ROPES, TEXTS
from test_gguf_tokenizers import KINDS, SOURCE_CODE, checkpoint_with

gguf: Any = pytest.importorskip("gguf")
TOKENS = pico.random_tokens(2, 24, seed=3)


def logits(folder: Path, **settings: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, **settings)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def written(checkpoint: Path, path: Path, dtype: str = "f32") -> Path:
    write_gguf(ModelSource(str(checkpoint)), path, dtype)
    return path


def changed(path: Path, values: dict[str, Any], tensors: dict[str, Any] | None = None, architecture: str = "") -> Path:
    """A copy of a file with other values (None: without) and tensors, under another architecture."""
    reader, copy = gguf.GGUFReader(path), path.with_name(f"changed-{len(list(path.parent.iterdir()))}.gguf")
    old = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(copy, architecture or old)
    for name, field in reader.fields.items():
        key = name.replace(f"{old}.", f"{architecture or old}.", 1)
        if key.startswith("GGUF.") or key == "general.architecture" or key in values:
            continue
        content, kinds = field.contents(), field.types
        if architecture and isinstance(content, list) and len(set(map(str, content))) == 1 and len(content) == 3:
            content, kinds = content[0], kinds[1:]
        writer.add_key_value(key, content, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for key, value in values.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(
                key, value, kind, gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
            )
    stored = {t.name: (t.data, t.tensor_type) for t in reader.tensors}
    if tensors is not None:
        stored = {name: (tensor.numpy(), gguf.GGMLQuantizationType.F32) for name, tensor in tensors.items()}
    for name, (data, kind) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


WITHIN = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def as_converters_name(checkpoint: Path, head_dim: int, *, tied: bool) -> dict[str, torch.Tensor]:
    """The tensors of a stock checkpoint under llama.cpp's names; rows of q and k of `llama` files are in pairs."""
    found, is_llama = {}, json.loads((checkpoint / "config.json").read_text())["model_type"] == "llama"
    for name, tensor in read_tensors(checkpoint / "model.safetensors")[0].items():
        module, kind = name.rsplit(".", 1)
        place = WITHIN.get(module) or f"blk.{module.split('.')[2]}.{WITHIN[module.split('.', 3)[3]]}"
        if is_llama and module.endswith(("q_proj", "k_proj")):
            halves = tensor.view(-1, 2, head_dim // 2, *tensor.shape[1:])
            tensor = torch.stack([halves[:, 0], halves[:, 1]], dim=2).reshape(tensor.shape)
        if not (tied and module == "lm_head"):
            found[f"{place}.{kind}"] = tensor
    return found


@pytest.mark.parametrize(
    ("family", "becomes"),
    [
        ("llama_mha", "llama"),
        ("llama_gqa", "llama"),
        ("llama_bias", "llama"),
        ("llama_tied", "llama"),
        ("mistral", "llama"),
        ("qwen2", "qwen2"),
        ("qwen2_tied", "qwen2"),
        ("qwen3_tied", "qwen3"),
    ],
)
def test_what_we_export_comes_back(family, becomes, checkpoint, tmp_path):
    found = darwinlm.import_checkpoint(written(checkpoint(family), tmp_path / "m.gguf"), tmp_path / "back").found
    assert found.model_type == becomes
    torch.testing.assert_close(logits(tmp_path / "back"), logits(checkpoint(family)), rtol=0, atol=1e-6)
    config, before = (AutoConfig.from_pretrained(path) for path in (tmp_path / "back", checkpoint(family)))
    for name in (
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "rms_norm_eps",
        "max_position_embeddings",
        "vocab_size",
    ):
        assert getattr(config, name) == getattr(before, name)
    assert not (tmp_path / "back/modeling_darwinlm.py").exists()
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (tmp_path / "back", checkpoint(family))]
    for text in (*TEXTS, f"a{pico.END}b"):
        assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


@pytest.mark.parametrize(
    ("family", "head_dim"), [("llama_gqa", 6), ("llama_bias", 4), ("qwen2", 4), ("qwen3", 8), ("qwen3_bias", 8)]
)
def test_files_of_the_stock_graphs(family, head_dim, checkpoint, tmp_path):
    """As llama.cpp's converter lays them out; transformers reads the same numbers, where it reads them at all."""
    source, architecture = checkpoint(family), family.split("_")[0]
    tied = AutoConfig.from_pretrained(source).tie_word_embeddings
    file = changed(
        written(checkpoint("llama_gqa"), tmp_path / "header.gguf"),
        {
            f"{architecture}.attention.head_count": 8,
            f"{architecture}.attention.head_count_kv": AutoConfig.from_pretrained(source).num_key_value_heads,
            f"{architecture}.attention.key_length": head_dim,
            f"{architecture}.attention.value_length": head_dim,
            f"{architecture}.rope.dimension_count": head_dim,
        },
        as_converters_name(source, head_dim, tied=tied),
        architecture,
    )
    found = darwinlm.import_checkpoint(file, tmp_path / "back").found
    assert found.model_type == architecture
    torch.testing.assert_close(logits(tmp_path / "back"), logits(source), rtol=0, atol=1e-6)
    if family == "llama_gqa":
        theirs = logits(file.parent, gguf_file=file.name)
        torch.testing.assert_close(logits(tmp_path / "back"), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama_gqa", "qwen3_tied"])
def test_layers_of_their_own_widths_and_modules_that_are_gone(family, source, database, tmp_path):
    levels = database(family, "auto")
    ladders = levels.ladders()
    genome = tuple(l.top if (l.layer, l.kind) in ((0, "mlp"), (2, "attention")) else 1 for l in ladders)
    export_checkpoint(Assembler(source(family), levels), genome, tmp_path / "pruned", {}, {})
    found = darwinlm.import_checkpoint(written(tmp_path / "pruned", tmp_path / "m.gguf"), tmp_path / "back").found
    torch.testing.assert_close(logits(tmp_path / "back"), logits(tmp_path / "pruned"), rtol=0, atol=1e-5)
    assert found.shape.parameters == ModelSource(str(tmp_path / "pruned")).shape.parameters
    assert ModelSource(str(tmp_path / "back")).shape == found.shape


def test_rounded_numbers_are_those_of_the_file_and_it_is_said(checkpoint, tmp_path, caplog):
    file = written(
        pico.make_checkpoint(tmp_path / "model", "llama_mha", hidden_size=64, intermediate_size=64),
        tmp_path / "m.gguf",
        "q8_0",
    )
    with caplog.at_level(logging.WARNING):
        found = darwinlm.import_checkpoint(file, tmp_path / "back").found
    assert "is quantized (23 as Q8_0 of its matrices)" in caplog.text
    assert "not the original model" in caplog.text
    assert (found.types, found.dtype) == ({"Q8_0": 23}, torch.float32)
    as_llama = changed(file, {}, None, "llama")
    torch.testing.assert_close(logits(tmp_path / "back"), logits(tmp_path, gguf_file=as_llama.name), rtol=0, atol=1e-6)
    half = darwinlm.import_checkpoint(file, tmp_path / "half", dtype="bf16").found
    assert half.dtype == torch.bfloat16
    assert {t.dtype for t in read_tensors(tmp_path / "half/model.safetensors")[0].values()} == {torch.bfloat16}


@pytest.mark.parametrize(("dtype", "stored"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_stays_and_loses_nothing(dtype, stored, tmp_path, caplog):
    path = pico.make_checkpoint(tmp_path / "model", "llama_mha", dtype=stored)
    with caplog.at_level(logging.WARNING):
        darwinlm.import_checkpoint(written(path, tmp_path / "m.gguf", dtype), tmp_path / "back")
    assert "quantized" not in caplog.text
    before, after = (read_tensors(folder / "model.safetensors")[0] for folder in (path, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    norm = torch.full((32,), 1.0001)  # half precision would round it
    file = changed(
        tmp_path / "m.gguf",
        {},
        {
            t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type))
            for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors
        }
        | {"output_norm.weight": norm},
    )
    darwinlm.import_checkpoint(file, tmp_path / "kept")
    assert torch.equal(read_tensors(tmp_path / "kept/model.safetensors")[0]["model.norm.weight"], norm)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_every_kind(kind, tmp_path):
    path = checkpoint_with(KINDS[kind](), tmp_path / "model")
    darwinlm.import_checkpoint(written(path, tmp_path / "m.gguf"), tmp_path / "back")
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "back", path))
    assert ours.special_tokens_map == theirs.special_tokens_map
    for text in (*TEXTS, "before</s>after", SOURCE_CODE):
        if kind == "spm always" and text.startswith(" "):
            continue  # where llama.cpp differs, as the export says
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text[:80]
        if not (kind.startswith("spm") and "</s>" in text):  # a space comes before what follows it
            assert ours.decode(ours(text, add_special_tokens=False)["input_ids"]) == text


def test_chats_and_ends(checkpoint, tmp_path):
    """The template, all tokens that end a turn, the sampling that is asked for."""
    file = written(checkpoint("llama_gqa"), tmp_path / "m.gguf")
    tokens = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    types = gguf.GGUFReader(file).fields["tokenizer.ggml.token_type"].contents()
    tokens[257:262], types[257:262] = (
        ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<tool>"],
        [3, 3, 3, 3, 4],
    )
    template = "{% for m in messages %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
    file = changed(
        file,
        {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.eot_token_id": 259,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": template,
            "general.sampling.temp": 0.5,
            "general.sampling.top_k": 7,
            "general.license": "apache-2.0",
        },
    )
    darwinlm.import_checkpoint(file, tmp_path / "back")
    generation = GenerationConfig.from_pretrained(tmp_path / "back")
    assert generation.eos_token_id == [256, 259, 258, 257]
    assert (generation.do_sample, generation.temperature, generation.top_k) == (True, 0.5, 7)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("a<|im_end|><tool>")["input_ids"] == [
        256,
        *tokenizer("a", add_special_tokens=False)["input_ids"],
        258,
        261,
    ]
    assert tokenizer.decode([258, 261], skip_special_tokens=True) == "<tool>"
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "userhi<|im_end|>"
    assert "license: apache-2.0" in (tmp_path / "back/README.md").read_text()
    assert AutoConfig.from_pretrained(tmp_path / "back").eos_token_id == generation.eos_token_id
    unknown = changed(file, {"tokenizer.ggml.unknown_token_id": 257})
    darwinlm.import_checkpoint(unknown, tmp_path / "unknown")
    assert GenerationConfig.from_pretrained(tmp_path / "unknown").eos_token_id == [256, 259, 258]
    named = {"tokenizer.chat_templates": ["rag"], "tokenizer.chat_template.rag": "R" + template}
    darwinlm.import_checkpoint(changed(file, named), tmp_path / "two")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert tokenizer.apply_chat_template(chat, chat_template="rag", tokenize=False) == "Ruserhi<|im_end|>"


@pytest.mark.parametrize("rope", ["linear", "llama3"])
def test_stretched_rotary_embeddings(rope, tmp_path):
    parameters = {**ROPES[rope], "rope_theta": 500.0}
    path = pico.make_checkpoint(tmp_path / "model", "llama_gqa", head_dim=16, rope_parameters=parameters)
    darwinlm.import_checkpoint(written(path, tmp_path / "m.gguf"), tmp_path / "back")
    assert AutoConfig.from_pretrained(tmp_path / "back").rope_parameters == parameters
    torch.testing.assert_close(logits(tmp_path / "back"), logits(path), rtol=0, atol=1e-5)


def _text(good: Path) -> Path:
    good.write_text("no model")
    return good


def _cut(good: Path) -> Path:
    good.write_bytes(good.read_bytes()[:-5000])
    return good


BAD = {
    "no file": (lambda good: good.with_name("none.gguf"), "There is no file"),
    "text": (_text, "is no whole GGUF file"),
    "cut short": (_cut, "is no whole GGUF file"),
    "a part": (lambda good: changed(good, {"split.count": 3}), "is one of 3 parts"),
    "other graph": (lambda good: changed(good, {}, architecture="gemma"), "holds the architecture 'gemma'"),
    "setting": (lambda good: changed(good, {"llama.logit_scale": 0.5}), "setting llama.logit_scale = 0.5"),
    "experts": (lambda good: changed(good, {"llama.expert_count": 8}), "setting llama.expert_count = 8"),
    "no widths": (lambda good: changed(good, {"llama.block_count": None}), "lacks block_count"),
    "odd widths": (
        lambda good: changed(good, {"llama.attention.head_count": "x"}),
        "makes no model and tokenizer (invalid literal",
    ),
    "odd epsilon": (
        lambda good: changed(good, {"llama.attention.layer_norm_rms_epsilon": -1.0}),
        "makes no model and tokenizer (-1.0 is",
    ),
    "odd types": (
        lambda good: changed(good, {"tokenizer.ggml.token_type": [1, 1]}),
        "makes no model and tokenizer (zip()",
    ),
    "no tokenizer": (lambda good: changed(good, {"tokenizer.ggml.tokens": None}), "holds no tokenizer"),
    "other cut": (lambda good: changed(good, {"tokenizer.ggml.pre": "kimi"}), "cuts text as 'kimi'"),
    "unigram": (lambda good: changed(good, {"tokenizer.ggml.model": "t5"}), "its model is 't5'"),
    "other heads": (lambda good: changed(good, {"llama.rope.dimension_count": 4}), "heads of 6 numbers"),
    "folder": (lambda good: good.parent, "is a folder of GGUF files. Give one of them: m.gguf"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_message(case, checkpoint, tmp_path, capsys):
    make, said = BAD[case]
    given = make(written(checkpoint("llama_gqa"), tmp_path / "m.gguf"))
    with pytest.raises(SystemExit) as exit_:
        main(["import", str(given), "--output", str(tmp_path / "back")])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*back*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"blk.0.attn_sinks.weight": torch.ones(8)}, "tensors that this family has not in transformers"),
        (lambda t: t | {"rope_freqs.weight": torch.tensor([1.0, 2.0, 5.0])}, "no setting of transformers gives"),
        (
            lambda t: t | {"blk.1.ffn_up.weight": torch.ones(40, 32)},
            r"'blk.1.ffn_up.weight' should be (48, 32) and is (40, 32)",
        ),
        (
            lambda t: {n: x for n, x in t.items() if n != "output_norm.weight"},
            "'output_norm.weight' should be (32,) and is missing",
        ),
        (
            lambda t: t | {"blk.1.ffn_up.weight": torch.full((48, 32), torch.nan)},
            "holds NaN or Inf in 'blk.1.ffn_up.weight'",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said, checkpoint, tmp_path, capsys):
    good = written(checkpoint("llama_gqa"), tmp_path / "m.gguf")
    tensors = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(good).tensors}
    with pytest.raises(SystemExit) as exit_:
        main(["import", str(changed(good, {}, change(tensors))), "--output", str(tmp_path / "back")])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*back*"))


def test_the_command_says_what_it_read(checkpoint, tmp_path, capsys):
    file = written(checkpoint("llama_gqa"), tmp_path / "m.gguf")
    with pytest.raises(SystemExit):
        main(["import", str(file), "--output", str(tmp_path / "back"), "--dtype", "q8_0"])
    assert "--dtype is 'q8_0'" in capsys.readouterr().err
    main(["import", str(file), "--output", str(tmp_path / "back")])
    printed = capsys.readouterr().out
    assert "23 F32" in printed
    assert "darwinlm prune" in printed


def test_other_commands_say_how_a_file_becomes_a_model(checkpoint, text, tmp_path, capsys):
    file = written(checkpoint("llama_gqa"), tmp_path / "m.gguf")
    with pytest.raises(SystemExit) as exit_:
        main(["prune", str(file), "--data", str(text), "--output", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert "darwinlm import" in capsys.readouterr().err
