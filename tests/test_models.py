"""Streamed blocks against the stock model, and checkpoints that are not what they should be."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pico
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.models import hub
from darwinlm.models.family import known_families
from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in pico.FAMILIES},
    "llama_scaled_rope": {"family": "llama_gqa", "rope_parameters": LLAMA3_ROPE},
    "mistral_sliding": {"family": "mistral", "sliding_window": 5},
    "qwen2_mixed": {"family": "qwen2", **SLIDING, "max_window_layers": 1},
    "qwen3_mixed": {"family": "qwen3", **SLIDING, "layer_types": ALTERNATING},
}
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return pico.make_checkpoint(tmp_path / "pico", "llama_gqa")


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_blocks_equal_the_stock_model(variant: str, tmp_path: Path) -> None:
    pico.make_checkpoint(tmp_path, **VARIANTS[variant])
    tokens = pico.random_tokens(5, 40)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        truth = stock.model(tokens).last_hidden_state
    source = ModelSource(str(tmp_path))
    hidden = pico.stream(source).final_hidden(tokens, batch=2)
    torch.testing.assert_close(hidden, truth, rtol=0, atol=2e-5)
    assert torch.equal(source.head().weight, stock.lm_head.weight)


def test_a_checkpoint_in_several_files_and_in_bfloat16(tmp_path: Path) -> None:
    pico.random_model("qwen2").bfloat16().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tokens = pico.random_tokens(2, 16)
    with torch.no_grad():
        truth = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).model(tokens).last_hidden_state
    source = ModelSource(str(tmp_path))
    assert source.dtype == torch.bfloat16
    torch.testing.assert_close(pico.stream(source).final_hidden(tokens), truth, rtol=0, atol=2e-5)


def test_tensors_that_stock_transformers_ignores_are_ignored(folder: Path) -> None:
    """Llama 2 ships rotary frequencies; Mistral ships all weights once more, under the names of its own code."""
    tensors, frequencies = (
        load_file(folder / WEIGHTS),
        {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)},
    )
    save_file(tensors | {name: torch.ones(3) for name in frequencies}, folder / WEIGHTS, metadata={"format": "pt"})
    save_file({"layers.0.attention.wq.weight": torch.ones(3)}, folder / "consolidated.safetensors")
    tokens = pico.random_tokens(2, 16)
    with torch.no_grad():
        truth = AutoModelForCausalLM.from_pretrained(folder).model(tokens).last_hidden_state
    source = ModelSource(str(folder))
    assert set(source.files) == set(tensors)
    torch.testing.assert_close(pico.stream(source).final_hidden(tokens), truth, rtol=0, atol=2e-5)


def test_a_plan_needs_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    for name in (folder, folder / "config.json"):
        shape = ModelSource(str(name), weights=False).shape
        assert shape.parameters == pico.random_model("llama_gqa").num_parameters()


def drop_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "no model folder.*hub id"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json.*cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json.*cannot be read"),
        (lambda folder: rewrite_config(folder, hidden_size="many"), "config.json.*cannot be read"),
        (lambda folder: rewrite_config(folder, model_type="mamba"), "'mamba'.*" + ", ".join(sorted(known_families()))),
        (drop_weights, "no safetensors weights.*reads no pickles"),
        (cut_weights, "model.safetensors' is damaged.*again"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "model.safetensors' is damaged.*again"),
    ],
)
def test_unusable_checkpoints_are_refused_with_a_remedy(folder: Path, spoil, said: str) -> None:
    spoil(folder)
    with pytest.raises(RequestError, match=said) as caught:
        ModelSource(str(folder))
    assert str(folder) in str(caught.value)


def name_as_in_multimodal(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {name.replace("model.", "model.language_model."): tensor for name, tensor in tensors.items()}, folder / WEIGHTS
    )


def move_outside(folder: Path) -> None:
    outside = folder.with_name("outside.safetensors")
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def change_tensors(folder: Path, **changed: Any) -> None:
    """Replace tensors (dots as double underscores), or add them."""
    names = {name.replace("__", "."): tensor for name, tensor in changed.items()}
    save_file(load_file(folder / WEIGHTS) | names, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda folder: change_tensors(folder, model__layers__1__mlp__up_proj__bias=torch.ones(48)),
            "no place for.*mlp_bias",
        ),
        (lambda folder: change_tensors(folder, norm__weight=torch.ones(32)), "under two names, 'norm.weight'"),
        (
            lambda folder: change_tensors(folder, model__norm__weight=torch.ones(31)),
            r"\[31\] in the file, \[32\].*import",
        ),
        (
            lambda folder: change_tensors(folder, model__norm__weight=torch.ones(32, dtype=torch.int8)),
            "as I8.*quantized",
        ),
        (name_as_in_multimodal, "text model of a multimodal one.*save_original_format=False"),
        (move_outside, "link out of its folder"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "an adapter"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, spoil, said: str) -> None:
    spoil(folder)
    with pytest.raises(RequestError, match=said):
        ModelSource(str(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**8}, "num_hidden_layers is 100000000; .*from 1 to 4,096"),
        ({"hidden_size": -32}, "hidden_size is -32"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"layer_types": ["full_attention"] * 4}, r"\(3\) must be equal to the number of `layer_types` \(4\)"),
        ({"per_layer_config": {"7": {}}}, "a layer '7'"),
        (
            {"layer_types": ["linear_attention"] * 3, "per_layer_config": {"1": {"skip": ["attention"]}}},
            "skips attention in layer 1, which has linear attention",
        ),
        ({"head_dim": None, "hidden_size": 36}, "36.*not a multiple of the number of attention heads"),
        ({"hidden_act": "foo"}, "cannot build such a layer"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "multimodal.*'gemma3_text'"),
    ],
)
def test_impossible_configurations_are_refused_without_weights(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    (folder / WEIGHTS).unlink()
    rewrite_config(folder, **changes)
    with pytest.raises(RequestError, match=said):
        ModelSource(str(folder), weights=False)


def test_the_index_decides_which_file_counts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model-00002-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    stock = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for _ in range(2):
        read = ModelSource(str(folder)).tensors(tensors)
    assert all(torch.equal(read[name], stock[name]) for name in read)
    assert [record.message.count("model-00002-of-00002") for record in caplog.records] == [1]
    for wrong, said in (("../x.safetensors", "in its folder"), ("gone.safetensors", "lacks 1 .*'gone.safetensors'")):
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], "model.norm.weight": wrong}}))
        with pytest.raises(RequestError, match=said):
            ModelSource(str(folder))


def test_a_stored_head_that_differs_from_a_tied_embedding_counts(tmp_path: Path) -> None:
    pico.make_checkpoint(tmp_path, "llama_tied")
    change_tensors(tmp_path, lm_head__weight=torch.randn(pico.VOCABULARY, 32))
    source = ModelSource(str(tmp_path))
    assert torch.equal(source.head().weight, AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight)
    assert not source.shape.tied
    assert not source.config.tie_word_embeddings


def test_the_dtype_is_that_of_most_bytes(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, folder / WEIGHTS, metadata={"format": "pt"})
    source = ModelSource(str(folder))
    assert source.dtype == torch.bfloat16
    assert source.dtype_of("model.norm.weight") == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_outlines_are_those_of_the_stock_model(variant: str) -> None:
    model = pico.random_model(**VARIANTS[variant])
    shape = ModelShape.of(known_families()[model.config.model_type], model.config)
    assert shape.outlines() == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def test_added_tokens_without_a_row_are_not_used(tmp_path: Path) -> None:
    pico.make_checkpoint(tmp_path, "llama_gqa", vocab_size=257)
    tokenizer = pico.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    found = ModelSource(str(tmp_path)).tokenizer
    assert max(found("<pad> and text")["input_ids"]) < 257
    assert found.pad_token is None


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(RequestError, match=r"'someone/pico'.*Check the path or the connection"):
        ModelSource("someone/pico")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedFileError, match=rf"holds NaN or Inf in '{name}'"):
        ModelSource(str(folder)).layer(1)


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    rewrite_config(folder, num_hidden_layers=4)
    with pytest.raises(DamagedFileError, match=r"lacks 9 of its tensors, 'model\.layers\.3.*config\.json"):
        ModelSource(str(folder))


def test_a_quantized_checkpoint_is_refused(folder: Path) -> None:
    rewrite_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(RequestError, match=r"is quantized.*quantize afterwards"):
        ModelSource(str(folder))


def test_a_context_that_the_model_was_not_made_for(folder: Path) -> None:
    ModelSource(str(folder)).require_context(128)
    with pytest.raises(RequestError, match=r"at most 128 tokens.*sequence_length is 129"):
        ModelSource(str(folder)).require_context(129)


def test_a_tokenizer_is_needed(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(RequestError, match=r"no usable tokenizer.*beside the weights"):
        _ = ModelSource(str(folder)).tokenizer


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    pico.make_checkpoint(tmp_path, "llama_gqa", vocab_size=200, bos_token_id=1, eos_token_id=2)
    with pytest.raises(RequestError, match=r"257 tokens.*200 rows"):
        _ = ModelSource(str(tmp_path)).tokenizer


def test_the_tokenizer_keeps_its_text(source) -> None:
    tokenizer = source("llama_gqa").tokenizer
    text = "Grüße,\n  world!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == pico.BYTES


def test_the_fingerprint_is_the_models_own(folder: Path, tmp_path: Path) -> None:
    whole = ModelSource(str(folder)).fingerprint
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert ModelSource(str(copy)).fingerprint == whole
    rewrite_config(copy, rms_norm_eps=1e-4)
    assert ModelSource(str(copy)).fingerprint != whole


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_the_fingerprint_changes_with_a_single_weight(folder: Path, name: str) -> None:
    whole = ModelSource(str(folder)).fingerprint
    tensors = load_file(folder / WEIGHTS)
    tensors[name].view(-1)[-1] += 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert ModelSource(str(folder)).fingerprint != whole
