"""The `Modelfile` that `ollama create` reads, beside a GGUF file.

It has no TEMPLATE: Ollama takes the chat template out of the file.
"""

from __future__ import annotations

import json
from typing import Any

from darwinlm.export.card import told_by
from darwinlm.export.gguf.vocabulary import Vocabulary
from darwinlm.models.source import ModelSource

_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
"""A generation setting -> Ollama's name for it."""


def modelfile(source: ModelSource, words: Vocabulary, file: str) -> str:
    """Its text.

    Args:
        source: the checkpoint.
        words: its tokenizer.
        file: name of the GGUF file, in the same folder.
    """
    ends = dict.fromkeys(words.tokens[words.special[name]] for name in ("eos", "eot") if name in words.special)
    lines = [f"FROM ./{file}", *(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends)]
    lines += [f"PARAMETER {name} {value}" for name, value in _sampling(source).items()]
    if (licence := told_by(source)["license"]) != "unknown":
        lines.append(f"LICENSE {json.dumps(licence)}")
    return "\n".join(lines) + "\n"


def _sampling(source: ModelSource) -> dict[str, Any]:
    """What the checkpoint's generation settings say of sampling, as far as they can be read."""
    try:
        told = json.loads((source.folder / "generation_config.json").read_text(encoding="utf-8"))
        found = {name: told.get(key) for key, name in _SAMPLING.items() if told.get("do_sample")}
    except (OSError, ValueError, AttributeError):
        return {}
    return {name: value for name, value in found.items() if type(value) in (int, float)}
