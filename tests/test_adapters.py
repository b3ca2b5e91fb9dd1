"""Low-rank adapters: the merged checkpoint is the model with its adapters, and nothing else has moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.models.source import ModelSource
from darwinlm.recovery.result import write_result
from killing import kill_within
from test_export import some_genomes
from training import BLOCKS, STEPS, TRAIN, flags, history, losses, write_text

LORA = {**TRAIN, "method": "lora", "lora_rank": 3, "lora_alpha": 12}


@pytest.fixture(scope="module")
def pruned(source, database, tmp_path_factory) -> Path:
    from darwinlm.assemble import Assembler
    from darwinlm.export.huggingface import export_checkpoint

    levels, folder = database("qwen2_tied", "kv_group"), tmp_path_factory.mktemp("pruned") / "model"
    assembler = Assembler(source("qwen2_tied"), levels)
    export_checkpoint(assembler, some_genomes(levels)["middle"], folder, {}, {})
    return folder


@pytest.fixture(scope="module")
def trained(pruned, tmp_path_factory) -> tuple[Path, Path]:
    """A training whose last state is kept: (its folder, a copy of the state)."""
    folder = tmp_path_factory.mktemp("trained")
    text = write_text(folder)
    with pytest.MonkeyPatch.context() as patch:

        def keep(source, state, *others):
            shutil.copytree(state, folder / "state")
            write_result(source, state, *others)

        patch.setattr("darwinlm.recovery.run.write_result", keep)
        darwinlm.train(str(pruned), data=str(text), output=str(folder / "run"), blocks=BLOCKS, train=LORA)
    return folder / "run", folder / "state"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # by PEFT itself
def test_merged_is_the_model_with_its_adapters(pruned, trained):
    """PEFT's own wrapper around stock transformers, with the trained adapters in it and not merged."""
    from darwinlm.recovery.state import saved_weights

    run, state = trained
    base = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32, trust_remote_code=True)
    adapted = get_peft_model(base, LoraConfig(r=3, lora_alpha=12, target_modules="all-linear")).eval()
    weights = {f"base_model.model.{name}": tensor for name, tensor in saved_weights(state).items()}
    assert all("lora_" in name for name in weights)
    assert adapted.load_state_dict(weights, strict=False).unexpected_keys == []
    merged = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32, trust_remote_code=True)
    tokens = pico.random_tokens(2, 24)
    with torch.no_grad():
        ours, truth, before = merged(tokens).logits, adapted(tokens).logits, base.eval()
        torch.testing.assert_close(ours, truth, atol=2e-4, rtol=0)
        with adapted.disable_adapter():
            assert (before(tokens).logits - truth).abs().max() > 0.05


def test_only_matrices_of_layers_have_moved(pruned, trained):
    before, after = ModelSource(str(pruned)), ModelSource(str(trained[0] / "model"))
    assert after.shape == before.shape
    for name, tensor in before.tensors(before.files).items():
        moved = not torch.equal(after.tensors([name])[name], tensor)
        assert moved == ("_proj.weight" in name), name


def test_they_learn_and_tell_it(trained):
    found = losses(trained[0])
    assert len(found) == STEPS
    assert found[-1] < found[0]
    assert "- adapters: rank 3, alpha 12, all-linear; merged" in (trained[0] / "model/README.md").read_text()


def test_kill_9_changes_nothing(pruned, trained, tmp_path):
    text = trained[0].parent / "text.txt"
    words = flags(method="lora", lora_rank=3, lora_alpha=12)
    command = ["train", str(pruned), "--data", str(text), "--output", str(tmp_path / "run"), *words]
    kill_within("darwinlm.recovery.objective", "next_token_loss", 20, command)
    darwinlm.train(str(pruned), data=str(text), output=str(tmp_path / "run"), blocks=BLOCKS, train=LORA)
    assert history(tmp_path / "run") == history(trained[0])
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (trained[0] / weights).read_bytes()
