"""Cards, licences, templates and links of a checkpoint: none ends a run, leaks out of its folder, or is lost without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import darwinlm
from darwinlm.export.card import front_matter, without_places
from darwinlm.export.huggingface import write_checkpoint
from darwinlm.export.portable import write_portable
from darwinlm.foreign.masked import import_model
from darwinlm.models.source import ModelSource
from darwinlm.recovery.result import _card

LICENSED = "license: apache-2.0"
CARDS: dict[str, tuple[bytes, Any]] = {
    "gbk": (f"---\n{LICENSED}\n---\n# 模型说明\n".encode("gbk"), "apache-2.0"),
    "latin": (f"---\n{LICENSED}\nlanguage: français\n---\n".encode("latin-1"), "apache-2.0"),
    "mark": (f"---\n{LICENSED}\n---\n".encode("utf-8-sig"), "apache-2.0"),
    "lines of Windows": (f"---\r\n{LICENSED}\r\n---\r\n# M\r\n".encode(), "apache-2.0"),
    "dashes within": (f"---\ntitle: a---b\n{LICENSED}\n---\n".encode(), "apache-2.0"),
    "two": (b"---\nlicense: [mit, apache-2.0]\n---\n", ["mit", "apache-2.0"]),
    "large": (f"---\n{LICENSED}\n---\n".encode() + b"x" * (3 << 20), "apache-2.0"),
    "utf-16": (f"---\n{LICENSED}\n---\n".encode("utf-16"), "unknown"),
    "nested": (b"---\na: " + b"[" * 3000 + b"\n---\n", "unknown"),
    "a mapping": (b"---\nlicense: {a: b}\n---\n", "unknown"),
    "a list": (b"---\n- mit\n---\n", "unknown"),
    "no date": (b"---\nlicense: mit\ndate: 2001-99-99\n---\n", "unknown"),
    "python": (b"---\nlicense: !!python/object/apply:os.getcwd []\n---\n", "unknown"),
    "references": (
        b"---\na: &a [x,x]\n" + b"".join(b"b%d: &b%d [*a,*a]\n" % (i, i) for i in range(9)) + b"license: *a\n---\n",
        ["x", "x"],
    ),
    "never closed": (b"---\nlicense: mit\n# Model\n", "unknown"),
    "long": (b"---\nlicense: " + b"m" * 5000 + b"\n---\n", "unknown"),
    "zeros": (b"\0" * 100, "unknown"),
    "empty": (b"", "unknown"),
}


@pytest.fixture
def model(checkpoint, tmp_path) -> Path:
    """A pico checkpoint of its own."""
    return shutil.copytree(checkpoint("llama_gqa"), tmp_path / "some model")


def opened(folder: Path) -> ModelSource:
    return ModelSource(str(folder))


def rewritten(source: ModelSource, folder: Path, **record: Any) -> Path:
    """The same model as a checkpoint of ours."""
    tensors = source.tensors(source.files).items()
    write_checkpoint(folder, source, source.config, tensors, card=_card(source, {}), made_from=record)
    return folder


def halved(source: Path, target: Path) -> Path:
    """A masked copy, ready for an import."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
    shutil.copytree(source, target)
    model.save_pretrained(target)
    return target


@pytest.mark.parametrize("name", CARDS)
def test_no_card_of_a_model_ends_anything(model, name):
    card, licence = CARDS[name]
    (model / "README.md").write_bytes(card)
    front = yaml.safe_load(front_matter(opened(model), "pruned"))
    assert front["license"] == licence
    assert "base_model" not in front


def test_a_card_of_ours_that_somebody_spoilt_goes_on(model, tmp_path):
    ours = rewritten(opened(model), tmp_path / "ours")
    (ours / "README.md").write_bytes(CARDS["gbk"][0])
    write_portable(opened(ours), tmp_path / "portable")
    assert "Portable form" in (tmp_path / "portable/README.md").read_text(encoding="utf-8")
    assert _card(opened(ours), {"tokens": 5}).endswith("## Post-training\n- tokens: 5\n")


def test_a_folder_with_a_slash_is_no_name_on_the_hub(model, monkeypatch):
    monkeypatch.chdir(model.parent.parent)
    card = front_matter(opened(Path(model.parent.name) / model.name), "pruned")
    assert "base_model" not in yaml.safe_load(card)


def test_a_snapshot_of_the_hub_is_known_by_its_name(model, tmp_path):
    snapshot = tmp_path / "models--some--model/snapshots/abc"
    blobs = tmp_path / "models--some--model/blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, path in enumerate(model.iterdir()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    source = opened(snapshot)
    assert yaml.safe_load(front_matter(source))["base_model"] == "some/model"
    ours = rewritten(source, tmp_path / "ours")
    assert (ours / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not (ours / "tokenizer.json").is_symlink()


def test_where_a_model_comes_from_is_kept_through_all_steps(model, tmp_path, monkeypatch):
    source = opened(model)
    monkeypatch.setattr(source, "name", "somebody/some-model")
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: research\nbase_model: older/one\n---\n")
    once = rewritten(source, tmp_path / "once")
    imported = import_model(str(halved(once, tmp_path / "masked")), str(tmp_path / "twice")).folder
    trained = ModelCard(_card(opened(imported), {"tokens": 5}))
    for card in (ModelCard.load(once / "README.md"), ModelCard.load(imported / "README.md"), trained):
        assert card.data.base_model == "somebody/some-model"
        assert (card.data.license, card.data.license_name) == ("other", "research")
        assert str(tmp_path) not in card.content
    assert str(tmp_path) not in (imported / "darwinlm.json").read_text()


def test_a_trained_stock_model_has_a_card_of_its_own(checkpoint, text, tmp_path):
    model = shutil.copytree(checkpoint("llama_gqa"), tmp_path / "some model")
    claims = "---\nlicense: mit\nmodel-index: [{name: best}]\n---\n# Best of all\nScores 99.7 at everything.\n"
    (model / "README.md").write_text(claims)
    settings = {"sequence_length": 16, "batch_tokens": 64, "warmup_steps": 0, "shuffle_blocks": 8, "tokens": 128}
    blocks = {"sequence_length": 16, "held_out": 4}
    darwinlm.train(str(model), data=str(text), output=tmp_path / "out", train=settings, blocks=blocks, device="cpu")
    card = ModelCard.load(tmp_path / "out/model/README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert card.text.lstrip().startswith("# some model, trained")
    assert "text.txt" in card.text
    for absent in ("99.7", "model-index", str(tmp_path), str(text.parent)):
        assert absent not in card.content


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("owner/name:config:train", "owner/name:config:train"),
        ("fineweb-edu=0.7,{here}/notes/=0.3", "fineweb-edu=0.7,notes=0.3"),
        ("{here}/notes", "notes"),
        ("~/somewhere/text.txt", "text.txt"),
        ("stdlib", "stdlib"),
    ],
)
def test_places_of_this_machine_are_not_told(tmp_path, typed, told):
    (tmp_path / "notes").mkdir()
    assert without_places(typed.format(here=tmp_path)) == told


def test_a_hostile_name_is_one_line_of_plain_text(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("llama_gqa"), tmp_path / "a\n---\n\x1b[31m# b")
    card = _card(opened(folder), {})
    assert "\x1b" not in card
    assert "\n# a --- \\x1b[31m# b, trained\n" in card
    assert ModelCard(card).data.license == "unknown"


def test_links_that_lead_out_are_not_copied(model, tmp_path, caplog):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for name in ("LICENSE-x", "README.md", "generation_config.json", "chat_template.jinja"):
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(secret)
    (model / "NOTICE").symlink_to("NOTICE")  # in a circle
    (model / "LICENSE.d").mkdir()
    (model / "real").write_text("a licence")
    (model / "LICENSE").symlink_to("real")
    ours = rewritten(opened(model), tmp_path / "ours")
    assert (ours / "LICENSE").read_text() == "a licence"
    assert not [
        path for path in ours.iterdir() if path.name != "chat_template.jinja" and "secret" in path.read_text("latin-1")
    ]
    assert "LICENSE-x" in caplog.text
    assert "NOTICE" in caplog.text
    AutoTokenizer.from_pretrained(ours)("text")


def test_a_tokenizer_that_is_a_link_is_written_as_it_was_read(model, tmp_path):
    shutil.move(model / "tokenizer.json", tmp_path / "elsewhere.json")
    (model / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    ours = rewritten(opened(model), tmp_path / "ours")
    words = "any text\n"
    assert AutoTokenizer.from_pretrained(ours)(words)["input_ids"] == opened(model).tokenizer(words)["input_ids"]


def test_code_of_a_tokenizer_is_not_asked_for_and_all_templates_come_along(model, tmp_path):
    values = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**values, "auto_map": {"AutoTokenizer": [None, "own.T"]}}))
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tool_use.jinja").write_text("tools")
    (model / "chat_template.jinja").write_text("{{ messages")  # broken, and nobody's business
    ours = rewritten(opened(model), tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(ours, trust_remote_code=True)
    assert tokenizer.chat_template == {"default": "{{ messages", "tool_use": "tools"}


def test_a_linked_folder_stays_a_link(model, tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "model").symlink_to("big disk")
    for number in range(2):
        rewritten(opened(model), tmp_path / "model", number=number)
        assert (tmp_path / "model").is_symlink()
        assert json.loads((tmp_path / "big disk/darwinlm.json").read_text())["number"] == number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big disk", "model", "some model"]
    (tmp_path / "nowhere").symlink_to("made anew")
    rewritten(opened(model), tmp_path / "nowhere")
    assert (tmp_path / "made anew/config.json").is_file()


@pytest.mark.parametrize("theirs", ["notes.txt", "model.safetensors", "adapters/adapter_model.safetensors"])
def test_what_somebody_put_there_is_kept_and_that_is_said(model, tmp_path, caplog, theirs):
    folder = rewritten(opened(model), tmp_path / "model", number=0)
    (folder / ".cache").mkdir()  # of the hub's command line
    (folder / theirs).parent.mkdir(exist_ok=True)
    with (folder / theirs).open("ab") as file:
        file.write(b"mine")
    rewritten(opened(model), folder, number=1)
    assert (tmp_path / "model.kept1" / theirs).read_bytes().endswith(b"mine")
    assert theirs in caplog.text
    assert json.loads((folder / "darwinlm.json").read_text())["number"] == 1
    caplog.clear()
    rewritten(opened(model), folder, number=2)
    assert not caplog.text
    assert not (tmp_path / "model.kept2").exists()
