"""What people do with a checkpoint in transformers, where layers of unequal width or absent modules could go wrong.

The truth is the stock dense model with the same parts masked by zeros. Loading without DarwinLM stands in test_export.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import pico
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint

FAMILIES = ("llama_gqa", "mistral", "qwen2", "qwen3")
ABSENT = {"first": 0, "middle": 1, "last": 2}
CASES = list(itertools.product(FAMILIES, ABSENT))
PAD = 0
WRITE = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}


def genome_without(levels, place: str) -> tuple[int, ...]:
    """Both modules of one layer absent, the others at unequal levels."""
    return tuple(
        ladder.top if ladder.layer == ABSENT[place] else min(1 + i % 2, ladder.top - 1)
        for i, ladder in enumerate(levels.ladders())
    )


@pytest.fixture(scope="module")
def exported(source, database, tmp_path_factory) -> Callable[[str, str], Path]:
    """Family and absent layer -> its checkpoint; read only."""

    @functools.cache
    def make(family: str, place: str) -> Path:
        levels = database(family, "auto")
        folder = tmp_path_factory.mktemp("exported") / f"{family}_{place}"
        assembler = Assembler(source(family), levels)
        export_checkpoint(assembler, genome_without(levels, place), folder, {"seed": 7}, {})
        return folder

    return make


@pytest.fixture(scope="module")
def masked(database, checkpoint) -> Callable[[str, str], Any]:
    """Family and absent layer -> the masked stock model; read only."""

    def make(family: str, place: str) -> Any:
        levels = database(family, "auto")
        return pico.zero_masked(checkpoint(family), levels, genome_without(levels, place))

    return functools.cache(make)


def load(folder: Path, **options: Any) -> Any:
    """As a user does."""
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **{"dtype": torch.float32, **options}
    ).eval()


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens).logits


def padded(sequences: int = 3, length: int = 12) -> dict[str, Tensor]:
    """Prompts of unequal length, padded on the left."""
    tokens = pico.random_tokens(sequences, length, seed=5)
    mask = torch.ones_like(tokens)
    for row, pads in enumerate(range(0, 4 * sequences, 4)):
        tokens[row, :pads], mask[row, :pads] = PAD, 0
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.mark.parametrize(("family", "place"), CASES)
@pytest.mark.parametrize("way", ["greedy", "beam", "static", "no cache"])
def test_left_padded_batches_are_continued_as_by_the_masked_model(way, family, place, exported, masked):
    options = {"beam": {"num_beams": 3}, "static": {"cache_implementation": "static"}, "no cache": {"use_cache": False}}
    plain = {"num_beams": 3} if way == "beam" else {}
    ours = load(exported(family, place)).generate(**padded(), **WRITE, **options.get(way, {}))
    assert torch.equal(ours, masked(family, place).generate(**padded(), **WRITE, **plain))


@pytest.mark.parametrize("place", ABSENT)
@pytest.mark.parametrize("pruned_is", ["assistant", "target"])
def test_assisted_generation_writes_what_the_target_writes_alone(pruned_is, place, exported, checkpoint):
    models = [load(exported("llama_gqa", place)), load(checkpoint("llama_gqa"))]
    target, assistant = models if pruned_is == "target" else models[::-1]
    prompt = {"input_ids": pico.random_tokens(1, 8), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    together = target.generate(**prompt, **WRITE, assistant_model=assistant)
    assert torch.equal(together, target.generate(**prompt, **WRITE))


@pytest.mark.parametrize(("family", "place"), CASES)
def test_the_attention_implementation_can_be_switched_after_loading(family, place, exported):
    model, tokens = load(exported(family, place), attn_implementation="sdpa"), pico.random_tokens(2, 12)
    before = logits(model, tokens)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=tokens, output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == 2  # only eager attention shows its weights, and one layer has none
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(output.logits, before, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # the name that 5.14 knows
@pytest.mark.parametrize(("family", "place"), CASES)
def test_gradient_checkpointing_gives_the_gradients_of_the_masked_model(family, place, exported, masked):
    tokens, gradients = pico.random_tokens(2, 12), {}
    model, truth = load(exported(family, place)), masked(family, place)
    for name in ("plain", "checkpointed"):
        if name == "checkpointed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train().zero_grad()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        gradients[name] = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    for key, gradient in gradients["plain"].items():
        torch.testing.assert_close(gradients["checkpointed"][key], gradient)
    truth.zero_grad()
    truth(input_ids=tokens, labels=tokens).loss.backward()
    for key in ("model.embed_tokens.weight", "model.norm.weight"):
        torch.testing.assert_close(gradients["plain"][key], truth.get_parameter(key).grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", ABSENT)
def test_device_map_places_layers_whole_even_on_disk(place, exported, masked, tmp_path):
    tokens = pico.random_tokens(2, 12)
    whole = load(exported("qwen3", place), device_map="auto")
    assert torch.equal(logits(whole, tokens), logits(load(exported("qwen3", place)), tokens))
    room = {"cpu": 90_000}  # embeddings and head fit, not all layers
    split = load(exported("qwen3", place), device_map="auto", max_memory=room, offload_folder=tmp_path)
    assert "disk" in split.hf_device_map.values()
    torch.testing.assert_close(logits(split, tokens), logits(masked("qwen3", place), tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama_tied", "qwen3_bias"])
def test_tied_weights_stay_one(family, exported, masked, tmp_path):
    model = load(exported(family, "middle"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    tokens = pico.random_tokens(2, 12)
    torch.testing.assert_close(logits(again, tokens), logits(masked(family, "middle"), tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers in the old way
@pytest.mark.parametrize(("family", "place"), CASES)
def test_lora_merged_is_lora_beside(family, place, exported):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, tokens = load(exported(family, place)), pico.random_tokens(2, 12)
    before = logits(model, tokens)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings).eval()
    beside = logits(adapted, tokens)
    assert not torch.allclose(beside, before, atol=1e-2)
    torch.testing.assert_close(logits(adapted.merge_and_unload(), tokens), beside, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "place"), CASES)
def test_trained_saved_and_loaded_again(family, place, exported, tmp_path):
    folder, tokens = exported(family, place), pico.random_tokens(4, 12)
    model = load(folder)
    settings = TrainingArguments(tmp_path / "run", max_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True)
    settings.disable_tqdm = True
    data = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(model, settings, train_dataset=data)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    again = load(tmp_path / "trained")
    assert torch.equal(logits(again, tokens), logits(model.eval(), tokens))
    assert not torch.allclose(logits(again, tokens), logits(load(folder), tokens), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_keeps_what_others_need_to_load_it(family, exported, tmp_path):
    folder, tokens = exported(family, "first"), pico.random_tokens(2, 12)
    model = load(folder)
    model.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved"))
    assert after["architectures"] == ["DarwinLMForCausalLM"]
    assert after["auto_map"] == before["auto_map"]
    assert after["per_layer_config"] == before["per_layer_config"]
    assert torch.equal(logits(load(tmp_path / "saved"), tokens), logits(model, tokens))
    decoder = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(decoder).__name__ == "DarwinLMModel"
    pickles = {".bin", ".pt", ".pth", ".pkl", ".pickle"}
    assert not [path for path in (tmp_path / "saved").rglob("*") if path.suffix in pickles]


def test_the_card_is_ready_for_the_hub(checkpoint, database, source, tmp_path, monkeypatch):
    """The hub's own check needs the hub; what it reads is parsed by its library here."""
    dense, levels = source("qwen2"), database("qwen2", "auto")
    monkeypatch.setattr(dense, "name", "somebody/some-model")
    licence = "license: other\nlicense_name: research\nlicense_link: LICENSE"
    for front, wanted in ((f"---\n{licence}\n---\n# Dense", "other"), ("# Without a front", "unknown")):
        card_of_dense = dense.folder / "README.md"
        card_of_dense.write_text(front)
        try:
            assembler = Assembler(dense, levels)
            export_checkpoint(assembler, genome_without(levels, "last"), tmp_path / "model", {}, {})
        finally:
            card_of_dense.unlink()
        card = ModelCard.load(tmp_path / "model/README.md")
        assert card.data.license == wanted
        assert card.data.license_name == ("research" if wanted == "other" else None)
        assert card.data.base_model == "somebody/some-model"
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "text-generation"
        assert {"darwinlm", "pruned"} <= set(card.data.tags)
        assert card.text.lstrip().startswith("# some-model, pruned")
