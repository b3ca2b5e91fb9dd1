"""SentencePiece BPE (Llama 2, Mistral): merges become scores, since llama.cpp joins the pair whose result scores best."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from darwinlm.export.gguf.byte_level import Cut

SPACE = "\u2581"
_UNKNOWN, _BYTE = 2, 6  # token types of GGUF
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def cut(stored: Mapping[str, Any]) -> Cut:
    """Read a tokenizer.json that was made from a SentencePiece model.

    Raises:
        ValueError: llama.cpp would cut text otherwise; the message says why.
    """
    model = stored["model"]
    vocabulary: dict[str, int] = model["vocab"]
    types = {f"<0x{byte:02X}>": _BYTE for byte in range(256)}
    if missing := [token for token in types if token not in vocabulary]:
        raise ValueError(f"it falls back on bytes, but has no token {missing[0]}")
    if model.get("unk_token"):
        types[model["unk_token"]] = _UNKNOWN
    prefix, notes = _space_prefix(stored)
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    return Cut(
        model="llama",
        pre="default",
        types=types,
        scores=_scores(vocabulary, merges, types.keys() | {token["content"] for token in stored["added_tokens"]}),
        add_space_prefix=prefix,
        notes=notes,
    )


def _space_prefix(stored: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether a space is put before a text, by the normalizer or by Metaspace."""
    normalizer, pre = stored["normalizer"], stored["pre_tokenizer"]
    if pre is None:
        steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
        if steps == [{"type": "Prepend", "prepend": SPACE}, _REPLACE]:
            return True, []
        if steps == [_REPLACE]:
            return False, []
    elif normalizer is None and pre["type"] == "Metaspace" and not pre.get("split", True):
        if pre["replacement"] == SPACE and pre["prepend_scheme"] == "never":
            return False, []
        if pre["replacement"] == SPACE:
            return True, _notes(pre["prepend_scheme"])
    raise ValueError("it handles spaces in another way than SentencePiece does in llama.cpp")


def _notes(scheme: str) -> list[str]:
    after_special = "llama.cpp also puts a space before text that follows a special token; this tokenizer does not."
    no_double = "llama.cpp puts a space before a text that begins with one, too; this tokenizer does not."
    return [no_double, after_special] if scheme == "first" else [no_double]


def _scores(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], apart: Collection[str]
) -> dict[str, float]:
    """{token: score}: minus the place of its first merge, so that an earlier merge scores better.

    SentencePiece joins any two neighbours whose concatenation is a token. That is the same as the merges when every
    such pair is among them, and the merges that give one token stand together. Tokens `apart` are found otherwise.
    """
    scores: dict[str, float] = {}
    last = None
    for place, (left, right) in enumerate(merges):
        result = left + right
        if result != last and result in scores:
            raise ValueError(f"its merges that make '{result}' do not stand together, so no score can order them")
        scores.setdefault(result, -float(place))
        last = result
    listed = set(merges)
    for token in vocabulary.keys() - apart:
        for i in range(1, len(token)):
            pair = token[:i], token[i:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in listed:
                raise ValueError(f"it never joins '{pair[0]}' and '{pair[1]}', which SentencePiece would")
    return scores
