"""Tokenizers of checkpoints: opened, held to the rows of the embedding, and compared."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from darwinlm.errors import RequestError, first_line
from darwinlm.runtime.files import sha256_of
from darwinlm.runtime.progress import log


def open_tokenizer(folder: Path, config: Any, rows: int, name: str) -> Any:
    """A checkpoint's tokenizer; added tokens that the embedding has no row for are taken out of it, and said.

    Args:
        folder: of the checkpoint.
        config: of the model.
        rows: of its embedding.
        name: of the checkpoint, for messages.

    Raises:
        RequestError: there is none that can be read, or ordinary tokens have no row.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
    except Exception as fault:  # the tokenizers' own errors have no class of their own
        raise RequestError(f"'{name}' has no usable tokenizer ({first_line(fault):.200}). {_remedy(folder)}") from fault
    beyond = {token: place for token, place in vocabulary.items() if place >= rows}
    if beyond:
        _take_out(tokenizer, beyond, rows, name)
    return tokenizer


def require_same_tokens(ours: Any, theirs: Any) -> int:
    """Check that two sources read text as the same tokens, so that their predictions can be compared.

    Args:
        ours: a `ModelSource`.
        theirs: the one that it is compared with.

    Returns:
        How many rows of their heads are tokens; the others are padding.

    Raises:
        RequestError: they do not; says where they differ.
    """
    mine, other = ours.tokenizer.get_vocab(), theirs.tokenizer.get_vocab()
    if mine == other:
        return 1 + max(mine.values())
    token = min(token for token, _ in mine.items() ^ other.items())
    places = " and ".join(
        f"is {vocabulary[token]}" if token in vocabulary else "is none" for vocabulary in (mine, other)
    )
    raise RequestError(
        f"'{theirs.name}' ({len(other):,} tokens) does not have the vocabulary of '{ours.name}' ({len(mine):,} tokens): "
        f"{token!r:.60} {places} there, so their predictions cannot be compared. Give the model it was pruned from."
    )


def require_same_chat(sources: list[Any]) -> None:
    """Check that models put turns into one chat template, so that they are asked the same.

    Args:
        sources: each a `ModelSource`.

    Raises:
        RequestError: one has none, or another one than the first.
    """
    first = sources[0]
    for source in sources:
        template = source.tokenizer.chat_template
        if template is None:
            raise RequestError(f"'{source.name}' has no chat template. Leave out --apply-chat-template, or this model.")
        if template != first.tokenizer.chat_template:
            raise RequestError(
                f"'{source.name}' has another chat template than '{first.name}', so they would not be asked the same. Leave out "
                "--apply-chat-template, or one of them."
            )


def tokens_digest(tokenizer: Any) -> str:
    """Tells tokenizers apart that make other tokens of a text."""
    made_by = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return sha256_of([made_by, str(sorted(tokenizer.special_tokens_map.items()))])


def _take_out(tokenizer: Any, beyond: dict[str, int], rows: int, name: str) -> None:
    """Remove added tokens without a row: text then never gives them, as it never did in training."""
    added = tokenizer.get_added_vocab()
    ends = {tokenizer.eos_token, tokenizer.bos_token}
    if not tokenizer.is_fast or any(token not in added or token in ends for token in beyond):
        raise RequestError(
            f"The tokenizer of '{name}' does not fit the model: it has {len(tokenizer):,} tokens, but the embedding only "
            f"{rows:,} rows; {min(beyond, key=beyond.__getitem__)!r:.60} has none. Use the tokenizer that the model was trained "
            "with."
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    for role, token in tokenizer.special_tokens_map.items():
        if token in beyond:
            setattr(tokenizer, role, None)
    listed = ", ".join(
        f"{token!r:.60} ({place})" for token, place in sorted(beyond.items(), key=lambda item: item[1])[:3]
    )
    log.warning(
        "The tokenizer of '%s' has %d added tokens that the embedding (%d rows) has no row for: %s. They are not used.",
        name,
        len(beyond),
        rows,
        listed,
    )


def _remedy(folder: Path) -> str:
    lacks = [package for package in ("sentencepiece", "google.protobuf") if not _is_installed(package)]
    if lacks and (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        packages = " ".join(package.replace("google.", "") for package in lacks)
        return f"Its tokenizer.model needs another package: pip install {packages}; or put a tokenizer.json beside the weights."
    return "Put its tokenizer files beside the weights."


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is none
        return False
