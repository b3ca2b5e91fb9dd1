"""A checkpoint's tokenizer in llama.cpp's terms; refused where llama.cpp would cut text otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darwinlm.errors import RequestError
from darwinlm.export.gguf import byte_level, sentencepiece
from darwinlm.export.gguf.byte_level import Cut
from darwinlm.models.source import ModelSource

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF


@dataclass(frozen=True)
class Vocabulary:
    """What the `tokenizer.ggml.*` entries of a GGUF file say."""

    cut: Cut
    tokens: list[str]
    """One for each row of the embedding; rows without a token are filled up."""
    types: list[int]
    scores: list[float] | None
    """What SentencePiece merges by."""
    special: dict[str, int]
    """bos, eos, unk, pad, eot (the end of a turn, where that is another token than eos): those that exist."""
    add_bos: bool
    add_eos: bool
    chat_template: str | list[dict[str, str]] | None
    """One, or several as {`name`, `template`}."""


def vocabulary(source: ModelSource) -> Vocabulary:
    """The tokenizer of a checkpoint.

    Raises:
        RequestError: llama.cpp cannot express it; says what stands in the way.
    """
    tokenizer = source.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(source, "it has no tokenizer.json; convert it with a fast tokenizer of transformers first")
    stored: dict[str, Any] = json.loads(backend.to_str())
    added: list[dict[str, Any]] = stored["added_tokens"]
    for token in added:
        if trimmed := [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]]:
            raise _refusal(source, f"its token '{token['content']}' has {', '.join(trimmed)}")
    if stored["model"]["type"] != "BPE":
        raise _refusal(source, f"its model is {stored['model']['type']}, and GGUF has BPE alone for these families")
    way = sentencepiece if stored["model"].get("byte_fallback") else byte_level
    try:
        cut = way.cut(stored)
    except ValueError as fault:
        raise _refusal(source, str(fault)) from fault
    add_bos, add_eos = _template(source, tokenizer)
    tokens, types = _token_list(source, stored, cut.types)
    return Vocabulary(
        cut=cut,
        tokens=tokens,
        types=types,
        scores=None if cut.scores is None else [cut.scores.get(token, 0.0) for token in tokens],
        special=_special(source, tokenizer),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(tokenizer.chat_template),
    )


def _refusal(source: ModelSource, reason: str) -> RequestError:
    return RequestError(
        f"The tokenizer of '{source.name}' cannot be written to GGUF: {reason}. The checkpoint itself runs in transformers."
    )


def _token_list(
    source: ModelSource, stored: Mapping[str, Any], types_of_model: Mapping[str, int]
) -> tuple[list[str], list[int]]:
    rows = source.shape.vocabulary
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    highest = max([*stored["model"]["vocab"].values(), *(token["id"] for token in stored["added_tokens"])])
    if highest >= rows:
        raise _refusal(source, f"it has an id {highest}, but the embedding only {rows} rows")
    for token, number in stored["model"]["vocab"].items():
        tokens[number], types[number] = token, types_of_model.get(token, 1)
    for token in stored["added_tokens"]:
        tokens[token["id"]] = token["content"]
        if types[token["id"]] in (1, UNUSED):  # unknown and byte tokens stay what they are
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if len(set(tokens)) < rows:
        raise _refusal(source, "two of its ids have the same text")
    return tokens, types


def _special(source: ModelSource, tokenizer: Any) -> dict[str, int]:
    """Ids of the special tokens. llama.cpp takes token 11 for bos and eos where it is not told, so it must be."""
    found = {
        name: getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "unk", "pad")
        if getattr(tokenizer, f"{name}_token_id", None) is not None
    }
    for name in ("eos", "bos"):
        ids = getattr(source.config, f"{name}_token_id", None)
        if name not in found and ids is not None:
            found[name] = ids[0] if isinstance(ids, list) else ids
    if "eos" not in found:
        raise _refusal(source, "neither it nor config.json names an end token (eos_token_id)")
    found.setdefault("bos", found["eos"])
    template = json.dumps(_chat_template(tokenizer.chat_template), ensure_ascii=False)
    turns = [
        number
        for number in _ends(source)
        if number != found["eos"] and str(tokenizer.convert_ids_to_tokens(number)) in template
    ]
    return {**found, "eot": turns[0]} if turns else found


def _ends(source: ModelSource) -> list[int]:
    """The tokens that end a text by the generation settings, as far as they can be read."""
    try:
        ids = json.loads((source.folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    known = range(source.shape.vocabulary)
    return [number for number in (ids if isinstance(ids, list) else [ids]) if type(number) is int and number in known]


def _chat_template(stored: Any) -> str | list[dict[str, str]] | None:
    """Several templates come from transformers by name, or as a list; the only one is taken for the usual one."""
    if isinstance(stored, Mapping):
        stored = [{"name": str(name), "template": template} for name, template in stored.items()]
    if not isinstance(stored, list):
        return stored if isinstance(stored, str) else None
    found = [one for one in stored if isinstance(one, Mapping) and isinstance(one.get("template"), str)]
    named = [{"name": str(one.get("name", "default")), "template": one["template"]} for one in found]
    return named[0]["template"] if len(named) == 1 else named


def _template(source: ModelSource, tokenizer: Any) -> tuple[bool, bool]:
    """Whether a begin and an end token are put around a text; found by looking."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for add_bos in (False, True):
        for add_eos in (False, True):
            before = [tokenizer.bos_token_id] if add_bos else []
            after = [tokenizer.eos_token_id] if add_eos else []
            if full == [*before, *plain, *after]:
                return add_bos, add_eos
    raise _refusal(source, f"it puts more than begin and end tokens around a text ('a' becomes {full})")
