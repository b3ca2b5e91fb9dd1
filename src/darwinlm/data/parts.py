"""Documents that come in parts, put together again only as far as their tokens depend on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from darwinlm.data.sources import Rest

WHOLE_CHARACTERS = 1 << 26
"""A tokenizer that begins every text in a way of its own (a space in front, as with Llama 2) splits nowhere: up to this
size a document stays whole for it; beyond, one such beginning is accepted per run."""
_AROUND = 256
_BATCH_TEXTS, _BATCH_CHARACTERS = 64, 1 << 22


def runs(texts: Iterable[str], tokenizer: Any) -> Iterator[str]:
    """Join parts until the next one begins where the tokenizer splits by itself.

    Args:
        texts: documents; a part that goes on is a `Rest`.
        tokenizer: tells by its own tokens of the text around a joint whether it splits there.

    Yields:
        Texts whose tokens, one after the other, are those of the whole; again, one that goes on is a `Rest`.
    """
    run: str | None = None
    for text in texts:
        if run is None:
            run = text
        elif isinstance(text, Rest) and len(run) < WHOLE_CHARACTERS and not _splits(run, text, tokenizer):
            joined = run + text
            run = Rest(joined) if isinstance(run, Rest) else joined
        else:
            yield run
            run = text
    if run is not None:
        yield run


def _splits(left: str, right: str, tokenizer: Any) -> bool:
    """Whether the tokens around a joint are the same whether the text comes in one or in two."""
    left, right = left[-_AROUND:], right[:_AROUND]
    both, first, second = tokenizer([left + right, left, right], add_special_tokens=False, verbose=False)["input_ids"]
    return both == first + second


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts to be tokenized at once: many short ones, few long ones."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_TEXTS or sum(map(len, batch)) >= _BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch
