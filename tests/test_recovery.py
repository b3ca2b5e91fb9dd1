"""Post-training against plain training in stock transformers; kills change nothing; the result is a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.data.stream import PackedStream
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.source import ModelSource
from killing import kill_within
from test_export import some_genomes
from training import BATCH, BLOCKS, LENGTH, STEPS, TRAIN, flags, history, losses, plain_training, write_text

FAMILY = "llama_gqa"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pruned(source, database, tmp_path_factory) -> Path:
    """A checkpoint whose middle layer is gone and whose others are thin."""
    levels, folder = database(FAMILY, "kv_group"), tmp_path_factory.mktemp("pruned") / "model"
    export_checkpoint(Assembler(source(FAMILY), levels), some_genomes(levels)["middle"], folder, {}, {})
    return folder


@pytest.fixture(scope="module")
def trained(pruned, text, tmp_path_factory) -> Path:
    """Its training that nothing interrupted."""
    output = tmp_path_factory.mktemp("trained") / "run"
    darwinlm.train(str(pruned), data=str(text), output=str(output), blocks=BLOCKS, train=TRAIN)
    return output


def batches(text: Path) -> list[torch.Tensor]:
    """What the stream gives, step by step; its first 5 blocks are held out."""
    rest = text.with_name("rest.txt")
    rest.write_bytes(text.read_bytes()[5 * LENGTH :])  # a token is a byte
    stream = PackedStream(str(rest), "text", pico.tokenizer(), LENGTH, 16, seed=0)
    blocks = [tokens for (tokens, _), _ in zip(stream.blocks(), range(STEPS * BATCH))]
    return list(torch.stack(blocks).split(BATCH))


def held_out(text: Path) -> torch.Tensor:
    ids = pico.tokenizer()(text.read_text())["input_ids"]
    return torch.tensor(ids[: 5 * LENGTH]).view(5, LENGTH)


def test_it_is_plain_training(pruned, trained, text):
    """Accumulated micro-batches and chunked losses, against whole batches and all logits."""
    truth, expected = plain_training(pruned, batches(text))
    assert losses(trained) == pytest.approx(expected, abs=2e-5)
    result = AutoModelForCausalLM.from_pretrained(trained / "model", dtype=torch.float32, trust_remote_code=True)
    for name, parameter in truth.state_dict().items():
        torch.testing.assert_close(result.state_dict()[name], parameter, atol=2e-4, rtol=0)


def test_pruned_layers_stay_pruned_and_learn(pruned, trained):
    before, after = ModelSource(str(pruned)), ModelSource(str(trained / "model"))
    assert after.shape == before.shape
    assert (after.shape.layers[1].heads, after.shape.layers[1].intermediate) == (0, 0)
    assert after.files.keys() == before.files.keys()
    assert sum(t.numel() for t in after.tensors(after.files).values()) == before.shape.parameters
    assert losses(trained)[-1] < losses(trained)[0] - 0.3


def test_the_held_out_text_is_what_stock_transformers_measure(pruned, trained, text):
    summary, tokens = json.loads((trained / "summary.json").read_text()), held_out(text)
    for key, folder in (("before", pruned), ("trained", trained / "model")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, trust_remote_code=True)
        with torch.no_grad():
            loss = cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert summary[key]["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-4)
    assert history(trained)[0]["held_out"] == summary["before"]
    assert [line["step"] for line in history(trained) if "loss" in line] == list(range(1, STEPS + 1))


def test_the_folder_tells_its_story(trained, text):
    card = (trained / "model/README.md").read_text()
    assert "It has had no training" not in card
    assert f"{STEPS * BATCH * LENGTH:,} of `{text.name}`" in card
    assert (trained / "model/modeling_darwinlm.py").exists()
    assert (trained / "train/curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list((trained / "train").glob("state-*"))
    assert not [p for p in trained.rglob("*") if p.suffix in (".pt", ".bin", ".pth")]


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("darwinlm.recovery.objective", "next_token_loss", 1),
        ("darwinlm.recovery.objective", "next_token_loss", 17),
        ("darwinlm.recovery.state", "write_tensors", 4),  # a state that is being written
        ("darwinlm.recovery.run", "write_result", 1),
        ("darwinlm.recovery.run", "draw_curves", 1),
    ],
)
def test_kill_9_changes_nothing(pruned, trained, text, tmp_path, module, name, call):
    command = ["train", str(pruned), "--data", str(text), "--output", str(tmp_path / "run"), *flags()]
    kill_within(module, name, call, command)
    assert not (tmp_path / "run/summary.json").exists()
    darwinlm.train(str(pruned), data=str(text), output=str(tmp_path / "run"), blocks=BLOCKS, train=TRAIN)
    assert history(tmp_path / "run") == history(trained)
    for path in (trained / "model").iterdir():
        assert (tmp_path / "run/model" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_finished_training_is_not_done_again(pruned, trained, text, monkeypatch):
    monkeypatch.setattr("darwinlm.recovery.run._fit", None)
    again = darwinlm.train(str(pruned), data=str(text), output=str(trained), blocks=BLOCKS, train=TRAIN).summary
    assert again == json.loads((trained / "summary.json").read_text())


def test_how_is_not_what(pruned, trained, text, tmp_path):
    """Other micro-batches, checkpointing, marks: the same curve up to rounding."""
    how = {
        "micro_batch_sequences": 1,
        "gradient_checkpointing": True,
        "eval_every_tokens": 256,
        "save_every_tokens": 512,
    }
    darwinlm.train(str(pruned), data=str(text), output=str(tmp_path / "o"), blocks=BLOCKS, train={**TRAIN, **how})
    assert losses(tmp_path / "o") == pytest.approx(losses(trained), abs=2e-5)
    assert sum("held_out" in line for line in history(tmp_path / "o")) == 1 + STEPS


def test_a_dense_model_stays_stock(checkpoint, text, tmp_path):
    source = checkpoint("qwen3_tied")
    darwinlm.train(str(source), data=str(text), output=str(tmp_path / "run"), blocks=BLOCKS, train=TRAIN)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert not info["missing_keys"]
    _, expected = plain_training(source, batches(text))
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=2e-5)
    assert not (tmp_path / "run/model/modeling_darwinlm.py").exists()


def test_a_trained_checkpoint_converts_as_any_other(trained, tmp_path):
    pytest.importorskip("gguf")
    from llama_cpp import Engine

    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    forms = darwinlm.export_checkpoint(str(folder), portable=True, format="gguf", dtype="f32").forms
    tokens = pico.random_tokens(1, 12)[0].tolist()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, trust_remote_code=True)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).float()
    found = Engine(forms[-1].path).log_probabilities(tokens, pico.VOCABULARY)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("given", [{}, {"hidden_weight": 0.3}, {"top_k": 7, "temperature": 2.0, "distill_weight": 0.9}])
def test_the_loss_of_a_teacher(pruned, checkpoint, text, tmp_path, given):
    """The first step's loss, from all logits of both models in float64."""
    train = {**TRAIN, "teacher": str(checkpoint(FAMILY)), **given}
    summary = darwinlm.train(
        str(pruned), data=str(text), output=str(tmp_path / "run"), blocks=BLOCKS, train=train
    ).summary
    tokens = batches(text)[0]
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, trust_remote_code=True)
        for path in (checkpoint(FAMILY), pruned)
    ]
    with torch.no_grad():
        teacher, student = (model(tokens, output_hidden_states=True) for model in models)
    temperature, weight = train.get("temperature", 1.0), train.get("distill_weight", 0.5)
    p, q = ((output.logits / temperature).log_softmax(-1) for output in (teacher, student))
    if "top_k" in given:
        first = p.topk(7, dim=-1).indices
        parts = [d.exp().gather(-1, first) for d in (p, q)]
        p, q = (torch.cat([d, 1 - d.sum(-1, keepdim=True)], -1).log() for d in parts)
    kl = kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    entropy = cross_entropy(student.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    expected = weight * temperature**2 * kl + (1 - weight) * entropy
    states = [(teacher.hidden_states[i + 1], student.hidden_states[i + 1]) for i in (0, 2)]  # layer 1 is gone
    distance = torch.stack([1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in states]).mean()
    expected += given.get("hidden_weight", 0) * distance
    assert losses(tmp_path / "run")[0] == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        p, q = (model(held_out(text)).logits.log_softmax(-1) for model in models)
    assert summary["before"]["kl"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    if weight == 0.9:  # of a random teacher, who knows nothing of the text
        assert summary["trained"]["kl"] < summary["before"]["kl"]


def test_the_teachers_logits_may_be_computed_once(pruned, checkpoint, text, tmp_path):
    train = {**TRAIN, "teacher": str(checkpoint(FAMILY)), "top_k": 7}
    stored = {**train, "teacher_logits": str(tmp_path / "logits")}
    for name, settings in (("live", train), ("stored", stored), ("again", stored)):
        darwinlm.train(str(pruned), data=str(text), output=str(tmp_path / name), blocks=BLOCKS, train=settings)
    assert history(tmp_path / "live") == history(tmp_path / "stored") == history(tmp_path / "again")
    with pytest.raises(darwinlm.RequestError, match=r"made from something else \(text"):
        darwinlm.train(str(pruned), data=str(text), output=str(tmp_path / "x"), blocks=BLOCKS, train=stored, seed=5)
    shard = next((tmp_path / "logits").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(darwinlm.DamagedFileError, match="missing or altered"):
        darwinlm.train(str(pruned), data=str(text), output=str(tmp_path / "y"), blocks=BLOCKS, train=stored)


def test_logits_on_other_text_are_refused(pruned, checkpoint, text, tmp_path):
    """Also where the file is called as before, is as long, and has the same first document, which is held out."""
    given = {"teacher": str(checkpoint(FAMILY)), "top_k": 7, "teacher_logits": str(tmp_path / "logits")}
    own, whole = tmp_path / "text.jsonl", text.read_text()

    def write(rest: str) -> None:
        own.write_text("".join(json.dumps({"text": part}) + "\n" for part in (whole[: 6 * LENGTH], rest)))

    write(whole[6 * LENGTH :])
    darwinlm.train(str(pruned), data=str(own), output=str(tmp_path / "run"), blocks=BLOCKS, train=TRAIN | given)
    write(whole[6 * LENGTH :].replace("and", "und"))
    with pytest.raises(darwinlm.RequestError, match="on other text than is trained on"):
        darwinlm.train(str(pruned), data=str(own), output=str(tmp_path / "again"), blocks=BLOCKS, train=TRAIN | given)


def test_weights_that_stay_score_as_before_in_any_arithmetic(pruned, checkpoint, text, tmp_path):
    train = {**TRAIN, "tokens": 3 * BATCH * LENGTH, "learning_rate": 1e-12, "teacher": str(checkpoint(FAMILY))}
    summary = darwinlm.train(
        str(pruned), data=str(text), output=str(tmp_path / "run"), blocks=BLOCKS, train=train, dtype="bfloat16"
    ).summary
    assert summary["before"] == summary["trained"]


def test_killed_logits_go_on(pruned, checkpoint, text, tmp_path, monkeypatch):
    given = {"teacher": checkpoint(FAMILY), "top_k": 7, "teacher_logits": tmp_path / "logits"}
    command = ["train", str(pruned), "--data", str(text), "--output", str(tmp_path / "run"), *flags(**given)]
    kill_within("darwinlm.recovery.teacher_logits", "write_tensors", 1, command)
    darwinlm.train(
        str(pruned),
        data=str(text),
        output=str(tmp_path / "run"),
        blocks=BLOCKS,
        train=TRAIN | {k: str(v) if k != "top_k" else v for k, v in given.items()},
    )
    assert len(losses(tmp_path / "run")) == STEPS
