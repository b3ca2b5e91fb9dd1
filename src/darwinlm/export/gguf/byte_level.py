"""Byte-level BPE (GPT-2, Llama 3, Qwen, Mistral's Tekken): llama.cpp knows the regular expressions by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import models

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = {
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_REST}": "qwen2",
    rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""Regular expression -> llama.cpp's name for it."""
NO_MERGES = ["no merges"]
"""llama.cpp wants a merge; this one never applies, for none makes its two words."""
IGNORES_MERGES = {"llama-bpe": True, "tekken": True}
"""A whole word that is a token stays one, whatever the merges say."""
BEGINS = ("llama-bpe", "tekken")
"""Where llama.cpp puts a begin token before a text unless the file says otherwise."""


@dataclass(frozen=True)
class Cut:
    """How a tokenizer cuts text, in llama.cpp's terms."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece)."""
    pre: str
    """How text is cut before merges; llama.cpp's name for it."""
    types: Mapping[str, int]
    """Token -> type of GGUF, where that is not 1 (normal)."""
    merges: list[str] | None = None
    """`left right`, best first, for byte-level BPE."""
    scores: Mapping[str, float] | None = None
    add_space_prefix: bool = False
    notes: list[str] = field(default_factory=list)
    """What llama.cpp does otherwise on rare text."""


def cut(stored: Mapping[str, Any]) -> Cut:
    """Read a byte-level tokenizer.json.

    Raises:
        ValueError: llama.cpp has no such way of cutting; the message says what it is.
    """
    model = stored["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"its BPE has a {name}")
    notes = _normalizer_notes(stored["normalizer"])
    pre = _pre_tokenizer(stored["pre_tokenizer"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    words = model["vocab"].keys() - {token["content"] for token in stored["added_tokens"]}
    same = bool(model.get("ignore_merges")) == IGNORES_MERGES.get(pre, False)
    if not same and _some_unreachable(model["vocab"], words, merges):
        raise ValueError(f"its ignore_merges is {model.get('ignore_merges')}, unlike llama.cpp's '{pre}'")
    return Cut(model="gpt2", pre=pre, types={}, merges=merges or NO_MERGES, notes=notes)


def _normalizer_notes(normalizer: Mapping[str, Any] | None) -> list[str]:
    if normalizer is None:
        return []
    if normalizer["type"] == "NFC":
        return ["llama.cpp does not compose characters (NFC) as this tokenizer does: give it composed text."]
    raise ValueError(f"it normalizes text by {normalizer['type']}, which llama.cpp does not")


def _pre_tokenizer(pre: Mapping[str, Any] | None) -> str:
    steps = [] if pre is None else pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise ValueError("it does not end in ByteLevel")
    *before, last = steps
    if last["add_prefix_space"]:
        raise ValueError("it puts a space before a text")
    if last["use_regex"] and not before:
        return "gpt-2"
    if last["use_regex"] and before == [{"type": "Digits", "individual_digits": True}]:
        return "smollm"
    if not last["use_regex"] and len(before) == 1 and before[0]["type"] == "Split":
        split = before[0]
        pattern = split["pattern"].get("Regex")
        if split["behavior"] in ("Isolated", "Removed") and split["invert"] == (split["behavior"] == "Removed"):
            if pattern in PATTERNS:
                return PATTERNS[pattern]
            raise ValueError(f"llama.cpp has no name for its regular expression {pattern}")
    raise ValueError(f"llama.cpp has no name for its steps {', '.join(step['type'] for step in steps)}")


def _some_unreachable(vocabulary: Mapping[str, int], words: Collection[str], merges: list[str]) -> bool:
    """Whether some word is a token that its own merges do not make: only then does `ignore_merges` matter."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    bpe = models.BPE(vocab=dict(vocabulary), merges=pairs)
    return any(len(bpe.tokenize(word)) > 1 for word in words)
