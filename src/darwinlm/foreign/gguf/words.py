"""The tokenizer of a GGUF file as transformers has it: the way back from `export.gguf`."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from darwinlm.errors import RequestError
from darwinlm.export.gguf.byte_level import BEGINS, IGNORES_MERGES, NO_MERGES, PATTERNS
from darwinlm.export.gguf.sentencepiece import SPACE
from darwinlm.export.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from darwinlm.foreign.gguf.reading import GgufFile

_SAME_AS = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "gpt2": "gpt-2",
}
"""Other names of llama.cpp for the same way of cutting."""
_COMPOSES = ("qwen2",)
"""Tokenizers that compose characters (NFC) before they cut, which llama.cpp leaves out."""
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""Tokens that end a turn, where the chat template writes them."""
_TEXT_ENDS = ("<|end_of_text|>", "<|endoftext|>")
"""Tokens that end a text, also of a chat whose turns end otherwise, unless they stand for what is unknown."""
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
"""What llama.cpp takes where such a file does not say."""


def tokenizer_of(file: GgufFile) -> Any:
    """The tokenizer, with its chat templates.

    Raises:
        RequestError: there is none, or it cuts text in a way that is not known here.
    """
    tokens, model = _tokens(file), _value(file, "model")
    if model == "gpt2":
        tokenizer, begins = _byte_level(file, tokens), _pre(file) in BEGINS
    elif model == "llama":
        tokenizer, begins = _sentencepiece(file, tokens), True
    else:
        raise _unknown(
            file, f"its model is '{model}', and these families have gpt2 (byte-level) and llama (SentencePiece)"
        )
    types = _value(file, "token_type", [NORMAL] * len(tokens))
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED) and token
        ]
    )
    special = special_ids(file)
    wanted = {"bos": _value(file, "add_bos_token", begins), "eos": _value(file, "add_eos_token", False)}
    around = {name: (tokens[special[name]], special[name]) for name in special if wanted.get(name)}
    tokenizer.post_processor = _around(around)
    named = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=int(file.get("context_length", 0)) or None,
        chat_template=_chat_template(file),
        **{role: tokens[special[name]] for name, role in named.items() if name in special},
    )


def special_ids(file: GgufFile) -> dict[str, int]:
    """Ids of bos, eos, unknown and padding, of those that there are."""
    usual = _SENTENCEPIECE_IDS if _value(file, "model") == "llama" else {}
    found = {name: _value(file, f"{name}_token_id", usual.get(name)) for name in ("bos", "eos", "unknown", "padding")}
    rows = len(_tokens(file))
    return {name: int(number) for name, number in found.items() if number is not None and 0 <= number < rows}


def end_ids(file: GgufFile) -> list[int]:
    """All tokens that end what is generated, as in llama.cpp: those that the file names, then those that are known by name."""
    special, places = special_ids(file), {token: i for i, token in enumerate(_tokens(file))}
    told = [special.get("eos"), *(_value(file, f"{name}_token_id") for name in ("eot", "eom"))]
    template, types = str(_chat_template(file) or ""), _value(file, "token_type", [NORMAL] * len(places))
    turns = [places[token] for token in _TURN_ENDS if token in places and token in template]
    texts = [places[token] for token in _TEXT_ENDS if token in places and types[places[token]] == CONTROL]
    known = [*turns, *(number for number in texts if number != special.get("unknown"))]
    return list(dict.fromkeys(int(number) for number in (*told, *known) if number is not None))


def generation_config(file: GgufFile) -> GenerationConfig:
    """Begin, end and padding tokens, and the sampling that the file asks for."""
    special, ends = special_ids(file), end_ids(file)
    sampling = {
        name: file.values[f"general.sampling.{key}"]
        for key, name in _SAMPLING.items()
        if f"general.sampling.{key}" in file.values
    }
    if sampling.get("temperature") == 0:
        sampling = {}
    return GenerationConfig(
        bos_token_id=special.get("bos"),
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=special.get("padding"),
        **({"do_sample": True, **sampling} if sampling else {}),
    )


def _value(file: GgufFile, name: str, default: Any = None) -> Any:
    return file.values.get(f"tokenizer.ggml.{name}", default)


def _tokens(file: GgufFile) -> list[str]:
    tokens = _value(file, "tokens")
    if not tokens:
        raise RequestError(f"'{file.path}' holds no tokenizer. Take a file of the whole model.")
    return tokens


def _unknown(file: GgufFile, reason: str) -> RequestError:
    return RequestError(
        f"The tokenizer of '{file.path}' cannot be read: {reason}. Take the model's own checkpoint, or a conversion by a newer "
        "llama.cpp."
    )


def _pre(file: GgufFile) -> str:
    name = str(_value(file, "pre", "default"))
    return _SAME_AS.get(name, name)


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    pre = _pre(file)
    patterns = {name: pattern for pattern, name in PATTERNS.items()}
    if pre not in (*patterns, "gpt-2", "smollm"):
        known = ", ".join(sorted((*patterns, "gpt-2", "smollm")))
        raise _unknown(file, f"it cuts text as '{pre}' (tokenizer.ggml.pre), and known are {known}")
    merges = [tuple(merge.split(" ", 1)) for merge in _value(file, "merges", []) if merge not in NO_MERGES]
    vocabulary = _without_padding(file, tokens)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=IGNORES_MERGES.get(pre, False)))
    if pre in patterns:
        steps = [
            pre_tokenizers.Split(Regex(patterns[pre]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        steps = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if _value(file, "pre") in _COMPOSES:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Scores become merges: of all pairs whose join is a token, those of the best tokens first."""
    vocabulary, scores = _without_padding(file, tokens), _value(file, "scores")
    if not scores:
        raise _unknown(file, "it has no scores")
    types = _value(file, "token_type", [NORMAL] * len(tokens))
    pairs = [
        (-scores[number], number, vocabulary[token[:i]], (token[:i], token[i:]))
        for token, number in vocabulary.items()
        if types[number] == NORMAL
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]
    unknown = special_ids(file).get("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[pair for *_, pair in sorted(pairs)],
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if _value(file, "add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _without_padding(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    """{token: id} without the rows that no text becomes."""
    types = _value(file, "token_type", [NORMAL] * len(tokens))
    return {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}


def _around(given: dict[str, tuple[str, int]]) -> Any:
    """What is put around a text: begin and end, each (token, id) where there is one."""
    begin, end = ([given[name][0]] if name in given else [] for name in ("bos", "eos"))
    single = [*begin, "$A", *end]
    pair = [*single, *(f"{token}:1" for token in begin), "$B:1", *(f"{token}:1" for token in end)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(given.values()))


def _chat_template(file: GgufFile) -> Any:
    """The usual template, or {name: template} where there are several."""
    usual = file.values.get("tokenizer.chat_template")
    names = file.values.get("tokenizer.chat_templates") or []
    named = {name: file.values[key] for name in names if (key := f"tokenizer.chat_template.{name}") in file.values}
    if not named:
        return usual
    return ({"default": usual} if usual else {}) | named
