"""Checkpoints of packed whole numbers, against the words of their published format read bit by bit, and models of those numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.config.settings import GgmlFormat, PackedFormat
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.export.compressed import write_compressed
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.formats.packing import pack, read_back, unpack, whole_numbers
from darwinlm.formats.rounding import rounded
from darwinlm.formats.types import BLOCKS, PACKED
from darwinlm.models.configuration import is_packed
from darwinlm.models.source import ModelSource
from darwinlm.refit.store import Refits

WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 160, "head_dim": 16}
GONE = {"model.layers.0.self_attn", "model.layers.1.mlp"}
TOKENS = pico.random_tokens(2, 12)


def read_bits(words: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The published format: the numbers of a word follow each other from its low bits on, 2^(bits - 1) larger than they are."""
    each = 32 // bits
    row = lambda held: [int(np.uint32(np.int32(w))) >> bits * i & (1 << bits) - 1 for w in held for i in range(each)]  # noqa: E731
    numbers = torch.tensor([row(held) for held in words.tolist()]) - (1 << bits - 1)
    return (numbers.unflatten(1, (scales.shape[1], -1)) * scales.float()[..., None]).flatten(1).bfloat16()


@given(
    st.sampled_from(sorted(PACKED)),
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=16),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_any_numbers_are_packed_and_read_back_and_stay(name: str, some: list[float], seed: int) -> None:
    matrix = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed))
    matrix.view(-1)[: len(some)] = torch.tensor(some)
    numbers, scales = whole_numbers(matrix, name)
    words, bits = pack(numbers, PACKED[name]), PACKED[name]
    assert words.dtype == torch.int32
    assert words.nbytes + scales.nbytes == BLOCKS[name][1] * matrix.numel() // BLOCKS[name][0]
    assert torch.equal(unpack(words, bits), numbers)
    found = read_back(numbers, scales)
    assert torch.equal(found.bfloat16(), read_bits(words, scales, bits))
    for once_more, first in zip(whole_numbers(found, name), (numbers, scales), strict=True):
        assert torch.equal(once_more, first)
    blocks = matrix.unflatten(1, (-1, BLOCKS[name][0]))
    largest = blocks.abs().amax(-1, keepdim=True).expand_as(blocks).flatten(1)
    assert (
        (found - matrix).abs() <= 1.02 * largest / 2 ** (bits - 1)
    ).all()  # one opposite to the largest one loses a step


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Family -> a checkpoint that lacks its first attention and its second MLP."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(f"packed_{family}")
        source = ModelSource(str(pico.make_checkpoint(folder / "dense", family, **WIDE)))
        levels = pico.make_database(folder / "levels", source, "kv_group", levels=4, multiple_of=32)
        genome = tuple(ladder.top if ladder.name in GONE else 1 for ladder in levels.ladders())
        export_checkpoint(Assembler(source, levels), genome, folder / "model", {}, {"genome": "of a test"})
        return folder / "model"

    known: dict[str, Path] = {}
    return lambda family: known.setdefault(family, known.get(family) or make(family))


def of_whole_numbers(folder: Path, dtype: str) -> Any:
    """The canonical checkpoint's model with its layers' matrices rounded."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = rounded(module.weight.data, dtype)
    return model


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama_gqa", "w4a16"), ("qwen3_tied", "w8a16"), ("phi3", "w4a16"), ("cohere", "w8a16")]
)
def test_the_form_holds_the_rounded_model(family: str, dtype: str, pruned) -> None:
    folder = pruned(family)
    form = darwinlm.export_checkpoint(str(folder), format="compressed-tensors", dtype=dtype).forms[1]
    assert form.path == folder.with_name(f"model-{dtype}")
    stored, bits = load_file(form.path / "model.safetensors"), PACKED[dtype]
    told = json.loads((form.path / "config.json").read_text())["quantization_config"]
    model = of_whole_numbers(folder, dtype)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            words, scales = stored[f"{name}.weight_packed"], stored[f"{name}.weight_scale"]
            assert torch.equal(read_bits(words, scales, bits).float(), module.weight)
            assert stored[f"{name}.weight_shape"].tolist() == list(module.weight.shape)
            (group,) = (g for g in told["config_groups"].values() if name in g["targets"] or g["targets"] == ["Linear"])
            assert group["weights"]["group_size"] == module.weight.shape[1] // scales.shape[1]
            assert name not in told["ignore"]
    for gone in (
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
        "lm_head",
    ):  # engines may build them
        assert gone in told["ignore"]
    with torch.no_grad():
        loaded = darwinlm.load(form.path, device="cpu", dtype="float32")(TOKENS).logits
        torch.testing.assert_close(loaded, model(TOKENS).logits, rtol=0, atol=1e-5)
    assert form.bytes < 0.75 * sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_second_order_puts_out_what_the_checkpoint_does_more_nearly(pruned, tmp_path) -> None:
    source, tokens = ModelSource(str(pruned("llama_gqa"))), pico.random_tokens(16, 24, seed=5)
    first = AutoModelForCausalLM.from_pretrained(source.folder, trust_remote_code=True, dtype=torch.float32).eval()
    errors = {}
    with torch.no_grad():
        wanted = first(tokens).logits.log_softmax(-1)
        for name, text in {"nearest": None, "second order": tokens}.items():
            write_compressed(source, tmp_path / name, "w4a16", text, torch.device("cpu"))
            found = darwinlm.load(tmp_path / name, device="cpu", dtype="float32")(tokens).logits.log_softmax(-1)
            errors[name] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert errors["second order"] < 0.8 * errors["nearest"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nearest", "second order"]
    assert "second order on 384 tokens" in (tmp_path / "second order/README.md").read_text()


def test_a_killed_rounding_goes_on_to_the_same_bytes(pruned, tmp_path, monkeypatch) -> None:
    source, tokens = ModelSource(str(pruned("llama_gqa"))), pico.random_tokens(4, 24, seed=5)

    def packed(folder: Path) -> bytes:
        write_compressed(source, folder, "w4a16", tokens, torch.device("cpu"))
        return (folder / "model.safetensors").read_bytes()

    whole, written, write = packed(tmp_path / "whole"), [], Refits.write

    def killed(refits: Refits, layer: int, *found: Any) -> None:
        if layer == 2 and len(written) == 2:
            raise KeyboardInterrupt
        written.append(layer)
        write(refits, layer, *found)

    monkeypatch.setattr(Refits, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    written.append(-1)
    assert packed(tmp_path / "again") == whole
    assert written == [0, 1, -1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


def test_weights_that_are_no_numbers_are_not_packed(tmp_path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", "llama_gqa", **WIDE)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"1\.mlp\.up_proj.*no numbers"):
        darwinlm.export_checkpoint(str(folder), format="compressed-tensors")
    assert not folder.with_name("dense-w4a16").exists()


@pytest.mark.parametrize("family", ["llama_gqa", "cohere"])  # the second has norms of heads, which are no matrices
def test_a_run_keeps_to_the_bytes_and_its_packed_form_holds_what_was_scored(family: str, text, tmp_path) -> None:
    folder, run = pico.make_checkpoint(tmp_path / "dense", family, **WIDE), tmp_path / "run"
    settings_ = {**pico.RUN, "search": {"start_rounds": 2, "start_tokens": 256}, "refit": {"tokens": 512}}
    settings_ |= {"database": {"levels": 4, "multiple_of": 32}}
    settings_ |= {"target": {"memory": "400KB", "formats": ["w8a16", "w4a16"], "context": 0}}
    summary = darwinlm.prune(str(folder), data=str(text), output=str(run), **settings_).summary
    genome = json.loads((run / "genome.json").read_text())
    assert genome["formats"]
    form = darwinlm.export_checkpoint(output=str(run), format="compressed-tensors").forms[1]
    limit = summary["achieved"]["limits"]["memory"]
    assert form.bytes <= limit["got"] <= limit["asked"] == 400_000
    canonical, packed = (ModelSource(str(path), packed=True) for path in (run / "model", form.path))
    assert packed.packed
    for name in canonical.files:
        torch.testing.assert_close(*(s.tensors([name])[name].float() for s in (canonical, packed)), rtol=0, atol=0)
    assert "--format compressed-tensors" in (run / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": "w4a16"}, "add --format gguf or compressed-tensors"),
        ({"format": "compressed-tensors", "dtype": "q8_0"}, "compressed-tensors can be written as w4a16, w8a16"),
    ],
)
def test_requests_that_cannot_be(arguments: dict[str, Any], said: str, pruned) -> None:
    with pytest.raises(RequestError, match=said):
        darwinlm.export_checkpoint(str(pruned("llama_gqa")), **arguments)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"formats": ["w4a16", "q4_0"]}, "has w4a16 of vLLM beside those of llama.cpp"),
        ({"formats": ["w4a16"], "embedding_format": "q8_0"}, "leave embedding and head as they are"),
    ],
)
def test_targets_that_cannot_be(target: dict[str, Any], said: str, text: Path, tmp_path: Path) -> None:
    asked = {**pico.RUN, "search": {}, "target": {"memory": "50%", **target}}
    with pytest.raises(RequestError, match=said):
        darwinlm.prune("nowhere", data=str(text), output=str(tmp_path / "run"), **asked)


def test_what_is_packed_is_scored_but_not_pruned(pruned, text, tmp_path) -> None:
    form = darwinlm.export_checkpoint(str(pruned("llama_gqa")), format="compressed-tensors", dtype="w4a16").forms[1]
    settings_ = {"data": str(text), "blocks": {"sequence_length": 16, "held_out": 4}}
    found = darwinlm.evaluate(form.path, against=pruned("llama_gqa"), **settings_).to_dict()
    assert 0 < found["qualities"]["model"]["kl"] < 1
    with pytest.raises(RequestError, match=r"is quantized.*prune first"):
        darwinlm.prune(form.path, output=str(tmp_path / "run"), **settings_, target={"parameters": "60%"})


@pytest.mark.parametrize(
    "changed",
    [
        {"kv_cache_scheme": {"num_bits": 8}},
        {"transform_config": {"config_groups": {"u": {}}}},
        {"format": "nvfp4-pack-quantized"},
        {"quant_method": "gptq"},
        {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group"}}}},
        {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}}}},
    ],
)
def test_what_computes_otherwise_is_not_taken_for_it(changed: dict[str, Any], pruned) -> None:
    form = darwinlm.export_checkpoint(str(pruned("llama_gqa")), format="compressed-tensors", dtype="w4a16").forms[1]
    config = json.loads((form.path / "config.json").read_text())
    group, *_ = config["quantization_config"]["config_groups"].values()
    assert is_packed(config)
    assert not is_packed({"quantization_config": {**config["quantization_config"], **changed}})
    rounds = {"g": {**group, "input_activations": {"num_bits": 8}}}
    assert not is_packed({"quantization_config": {**config["quantization_config"], "config_groups": rounds}})


def test_packed_weights_without_a_word_of_it_are_refused(pruned, tmp_path) -> None:
    form = darwinlm.export_checkpoint(str(pruned("llama_gqa")), format="compressed-tensors", dtype="w4a16").forms[1]
    folder = shutil.copytree(form.path, tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match="lacks"):
        ModelSource(str(folder))


def test_settings_name_all_formats_that_there_are() -> None:
    assert set(get_args(PackedFormat)) == PACKED.keys()
    assert set(get_args(GgmlFormat)) == BLOCKS.keys() - PACKED


def test_experts_are_not_packed(tmp_path) -> None:
    folder = pico.make_checkpoint(tmp_path / "dense", "qwen3_moe")
    with pytest.raises(RequestError, match="is a mixture of experts"):
        darwinlm.export_checkpoint(str(folder), format="compressed-tensors")
