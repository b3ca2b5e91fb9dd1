"""The words of a checkpoint: tokenizer, licence, generation settings, card. Whatever they hold, they end no run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import GenerationConfig

from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import write_json
from darwinlm.runtime.progress import log

CARD_BYTES = 1 << 20
"""What is read of a card."""
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*.tiktoken",
)
_LICENCE = ("LICENSE*", "NOTICE*")
PATTERNS = (*_TOKENIZER, *_LICENCE, "generation_config.json")
"""What is copied from a checkpoint into those that are made from it."""


def copy_words(source: ModelSource, folder: Path) -> None:
    """Copy tokenizer and licence as they are; generation settings are made from the configuration where there are none.

    Links that lead out of the model's folder are not copied: they may lead to what is not for others to see. A tokenizer
    that consists of such links is written as it was read.
    """
    left_out = []
    for path in sorted({path for pattern in PATTERNS for path in source.folder.glob(pattern)}):
        name = str(path.relative_to(source.folder))
        if not path.is_dir() and not _copied(path, source.folder, folder / name):
            left_out.append(name)
    if left_out:
        log.warning(
            "Not copied from '%s', as links that lead out of it or cannot be read: %s.",
            source.name,
            ", ".join(left_out),
        )
    if any(Path(name).match(pattern) for name in left_out for pattern in _TOKENIZER):
        source.tokenizer.save_pretrained(folder)
    _forget_code(folder / "tokenizer_config.json")
    if not (folder / "generation_config.json").exists():
        GenerationConfig.from_model_config(source.config).save_pretrained(folder)


def read_card(source: ModelSource) -> str:
    """The README.md of a checkpoint, at most a megabyte of it; bytes that are no UTF-8 are replaced, none is empty."""
    path = source.folder / "README.md"
    try:
        if not _is_own(path, source.folder):
            return ""
        with path.open("rb") as file:
            return file.read(CARD_BYTES).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _copied(path: Path, home: Path, copy: Path) -> bool:
    if not _is_own(path, home):
        return False
    try:
        original = path.open("rb")
    except OSError:
        return False
    copy.parent.mkdir(exist_ok=True)
    with original, copy.open("wb") as file:
        shutil.copyfileobj(original, file)
    return True


def _is_own(path: Path, home: Path) -> bool:
    """Whether a file lies in its folder, or in the hub's cache, whose folders hold links to blobs."""
    try:
        place = path.resolve(strict=True)
    except (OSError, RuntimeError):  # leads nowhere, or in circles
        return False
    is_blob = place.parent.name == "blobs" and place.parent.parent.name.startswith("models--")
    return place.is_file() and (is_blob or place.is_relative_to(home.resolve()))


def _forget_code(path: Path) -> None:
    """Tokenizer code of a checkpoint is neither run nor copied, so its copy must not ask for it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(values, dict) and values.pop("auto_map", None):
        write_json(path, values)
