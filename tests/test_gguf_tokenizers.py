"""Tokenizers in llama.cpp: every kind that our families use cuts varied text as transformers does, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import pico
from darwinlm.errors import RequestError
from darwinlm.export.gguf.file import write_gguf
from darwinlm.export.gguf.vocabulary import vocabulary
from darwinlm.models.source import ModelSource
from test_gguf import TEXTS

SPECIAL = ["<unk>", "<s>", "</s>"]
SIZE = 900
SOURCE_CODE = Path(json.__file__).read_text(encoding="utf-8")
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = LLAMA_3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(pattern: str):
    """A regular expression, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level(pre_tokenizer, *, ignore_merges: bool = False) -> Tokenizer:
    """Byte-level BPE trained on this test's texts."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*TEXTS, SOURCE_CODE], trainer)
    return tokenizer


def sentencepiece(prefix: str) -> Tokenizer:
    """BPE with byte fallback, whose merges are all pairs that give a token, by the token's rank: as Llama 2 has them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    words = [word for line in SOURCE_CODE.splitlines() for word in line.replace(" ", " \u2581").split()]
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=SIZE - 259))
    learnt = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(t[:i], t[i:]) for t in learnt for i in range(1, len(t)) if t[:i] in ids and t[i:] in ids]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "normalizer":
        replace = normalizers.Replace(" ", "\u2581")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def with_begin(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


KINDS = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "llama-bpe": lambda: with_begin(byte_level(split_by(LLAMA_3), ignore_merges=True)),
    "qwen2": lambda: byte_level(split_by(QWEN_2)),
    "tekken": lambda: byte_level(split_by(TEKKEN), ignore_merges=True),
    "spm normalizer": lambda: with_begin(sentencepiece("normalizer")),
    "spm always": lambda: sentencepiece("always"),
    "spm never": lambda: sentencepiece("never"),
}


def checkpoint_with(tokenizer: Tokenizer, folder: Path) -> Path:
    pico.random_model("llama_tied", vocab_size=SIZE + 4, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_cut_as_in_transformers(kind, tmp_path):
    from llama_cpp import Engine

    path = checkpoint_with(KINDS[kind](), tmp_path / "model")
    source = ModelSource(str(path))
    write_gguf(source, tmp_path / "model.gguf", "f32")
    words = vocabulary(source)
    assert words.cut.pre == ("default" if kind.startswith("spm") else kind)
    assert words.tokens[SIZE:] == [f"[PAD{i}]" for i in range(SIZE, SIZE + 4)]
    engine, tokenizer = Engine(tmp_path / "model.gguf", context=64), AutoTokenizer.from_pretrained(path)
    for text in (*TEXTS, "before</s>after", SOURCE_CODE):
        if kind == "spm always" and text.startswith(" "):
            continue  # its note says so
        assert engine.tokenize(text) == tokenizer(text)["input_ids"], text[:80]


def edited(change, kind: str = "gpt-2") -> Tokenizer:
    stored = json.loads(KINDS[kind]().to_str())
    change(stored)
    return Tokenizer.from_str(json.dumps(stored))


def _lowercase(stored):
    stored["normalizer"] = {"type": "Lowercase"}


def _space_before(stored):
    stored["pre_tokenizer"]["add_prefix_space"] = True


def _other_expression(stored):
    stored["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"


def _trimmed(stored):
    stored["added_tokens"][1]["rstrip"] = True


def _made_twice(merges) -> list:
    """The merges of the last token that has two."""
    by_result = {}
    for merge in merges:
        by_result.setdefault("".join(merge), []).append(merge)
    return [found for found in by_result.values() if len(found) > 1][-1]


def _reordered(stored):
    merges = stored["model"]["merges"]
    first = _made_twice(merges)[0]
    merges.remove(first)
    merges.insert(0, first)


def _fewer_merges(stored):
    merges = stored["model"]["merges"]
    merges.remove(_made_twice(merges)[1])


REFUSALS = {
    "normalizer": ("gpt-2", _lowercase, "Lowercase"),
    "prefix": ("gpt-2", _space_before, "a space before"),
    "expression": ("qwen2", _other_expression, r"regular expression \\w\+\|\\W"),
    "added": ("gpt-2", _trimmed, "'<s>' has rstrip"),
    "order": ("spm never", _reordered, "do not stand together"),
    "merges": ("spm never", _fewer_merges, "never joins"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_llama_cpp_would_cut_otherwise_is_refused(case, tmp_path):
    kind, change, reason = REFUSALS[case]
    path = checkpoint_with(edited(change, kind), tmp_path / "model")
    with pytest.raises(RequestError, match=reason):
        write_gguf(ModelSource(str(path)), tmp_path / "model.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))


def test_an_ignored_merge_matters_only_where_a_word_cannot_be_reached(tmp_path):
    def never_made(stored):
        stored["model"]["vocab"]["zqz"] = SIZE

    path = checkpoint_with(byte_level(split_by(LLAMA_3)), tmp_path / "same")
    assert vocabulary(ModelSource(str(path))).cut.pre == "llama-bpe"
    checkpoint_with(edited(never_made, "qwen2"), tmp_path / "plain")
    vocabulary(ModelSource(str(tmp_path / "plain")))
    other = byte_level(split_by(LLAMA_3))
    stored = json.loads(other.to_str())
    never_made(stored)
    checkpoint_with(Tokenizer.from_str(json.dumps(stored)), tmp_path / "other")
    with pytest.raises(RequestError, match="ignore_merges"):
        vocabulary(ModelSource(str(tmp_path / "other")))


@pytest.mark.parametrize("form", ["list", "only one", "files"])
def test_all_chat_templates_are_written(form, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = pico.make_checkpoint(tmp_path / "model", "llama_gqa")
    templates = {"default": "{{ messages }}", **({} if form == "only one" else {"tool_use": "{{ tools }}"})}
    if form == "files":
        pico_tokenizer = AutoTokenizer.from_pretrained(path)
        pico_tokenizer.chat_template = templates
        pico_tokenizer.save_pretrained(path)
    else:
        values = json.loads((path / "tokenizer_config.json").read_text())
        listed = [{"name": name, "template": template} for name, template in templates.items()]
        (path / "tokenizer_config.json").write_text(json.dumps({**values, "chat_template": listed}))
    write_gguf(ModelSource(str(path)), tmp_path / "model.gguf", "f32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if "chat_template" in name}
    assert fields.pop("tokenizer.chat_template") == templates["default"]
    assert fields == (
        {}
        if form == "only one"
        else {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    )


def test_programs_can_list_it_and_know_the_end_of_a_turn(tmp_path):
    gguf = pytest.importorskip("gguf")
    folder = tmp_path / "runs/small/model"
    pico.make_checkpoint(folder, "llama_tied")
    told = "license: other\nlicense_name: research\nlicense_link: LICENSE\nbase_model: somebody/some-model"
    (folder / "README.md").write_text(f"---\n{told}\n---\n# Pruned")
    tokenizer = pico.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|other|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [pico.BYTES, 258, 257, 9999, "x"]}))
    expected = {
        "name": "small",
        "size_label": "38K",
        "license": "other",
        "license.name": "research",
        "license.link": "LICENSE",
    }
    origin = {"count": 1, "0.name": "some-model", "0.organization": "somebody"}
    origin["0.repo_url"] = "https://huggingface.co/somebody/some-model"
    for ours in (False, True):
        if ours:
            (folder / "darwinlm.json").write_text("{}")
            expected |= {"name": "some-model-pruned", **{f"base_model.{key}": value for key, value in origin.items()}}
        write_gguf(ModelSource(str(folder)), tmp_path / "model.gguf", "f32")
        fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
        assert {name: fields.get(f"general.{name}") for name in expected} == expected
        assert fields["tokenizer.ggml.eot_token_id"] == 257
