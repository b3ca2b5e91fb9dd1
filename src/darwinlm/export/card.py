"""The model card of a pruned checkpoint: what it is, how it was made, how it is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from darwinlm.export.folder import RECORD
from darwinlm.export.words import read_card
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import KINDS
from darwinlm.models.source import ModelSource
from darwinlm.models.stock_form import OF_EACH_LAYER
from darwinlm.runtime.output import harmless

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FRONT = re.compile(r"\s*---[ \t]*\r?\n(.{0,65536}?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_TOLD = """pruned by [DarwinLM](https://arxiv.org/abs/2502.07780): second-order structured pruning of attention heads,
MLP columns and whole modules, with a level of its own for each module, found by a search.
The weights are really smaller; nothing is masked. It has had no training after the search."""
_TEMPLATE = """---
{front}---
# {title}

{dense} {told}

| | dense | pruned |
|---|---|---|
| parameters | {dense_parameters:,} | {parameters:,} |
| parameters in the decoder layers | {dense_layers:,} | {layers:,} |
| KV cache, values per token | {dense_cache:,} | {cache:,} |

## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH"{trusted})
tokenizer = AutoTokenizer.from_pretrained("PATH"{trusted})
```
{loaded}

## How it was made
{facts}

| layer | attention level | query heads | KV heads | MLP level | MLP columns |
|---|---|---|---|---|---|
{rows}
"""

_OURS = """Layers differ in width, which stock modeling code does not know yet; `modeling_darwinlm.py` beside the weights is all
that is needed besides transformers >= 5.14. It is short: read it before you trust it."""
_STOCK = """It is an ordinary `{name}` of {count} layers, all alike: engines, quantizers and trainers that know the family take it
as it is. Its layers are those below that have heads, in their order."""
_PATTERN = """
Which of them attend to a window, or rotate, no longer follows the family's own pattern: `config.json` has a list. Engines
that take the pattern for granted, as llama.cpp does, compute something else."""


def model_card(
    source: ModelSource,
    shape: ModelShape,
    levels: dict[str, int],
    facts: dict[str, Any],
    told: str = _TOLD,
    stock: Any = None,
) -> str:
    """The card as Markdown.

    Args:
        source: the dense checkpoint.
        shape: the pruned widths.
        levels: {module name: level}.
        facts: what is told of the making, a line each.
        told: what was done to the dense model, after its name.
        stock: the configuration, where it is one of the family's stock class.
    """
    title = title_of(source)
    rows = []
    for layer, widths in enumerate(shape.layers):
        attention, mlp = (levels.get(source.family.module(layer, kind), "-") for kind in KINDS)
        heads, keys = ("linear", "-") if widths.linear else (widths.heads, widths.kv_heads)
        rows.append(f"| {layer} | {attention} | {heads} | {keys} | {mlp} | {widths.intermediate} |")
    return _TEMPLATE.format(
        front=front_matter(source, "pruned"),
        title=f"{title}, pruned",
        dense=f"`{_hub_id(source) or title}`",
        told=told,
        trusted="" if stock else ", trust_remote_code=True",
        loaded=_loaded(source, stock) if stock else _OURS,
        dense_parameters=source.shape.parameters,
        parameters=shape.parameters,
        dense_layers=source.shape.layer_parameters,
        layers=shape.layer_parameters,
        dense_cache=source.shape.kv_cache_values_per_token,
        cache=shape.kv_cache_values_per_token,
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        rows="\n".join(rows),
    )


def _loaded(source: ModelSource, stock: Any) -> str:
    """What a stock model is, and where engines may be mistaken about it."""
    said = _STOCK.format(name=stock.architectures[0], count=stock.num_hidden_layers)
    lists = [(getattr(stock, key, None) or [], getattr(source.config, key, None) or []) for key in OF_EACH_LAYER]
    return said + (_PATTERN if any(now != dense[: len(now)] for now, dense in lists) else "")


def title_of(source: ModelSource) -> str:
    """The name of a model without the place where it lies."""
    name = _hub_id(source).split("/")[-1] or Path(source.name).expanduser().name or source.folder.resolve().name
    return " ".join(harmless(name).split())


def front_matter(source: ModelSource, *tags: str) -> str:
    """The card's YAML: how it is found on the hub, its licence, and the model on the hub that it goes back to.

    Args:
        source: the model that the checkpoint is made from.
        tags: besides `darwinlm`.
    """
    front = {
        "library_name": "transformers",
        "tags": ["darwinlm", *tags],
        "pipeline_tag": "text-generation",
        **told_by(source),
    }
    if hub_id := _hub_id(source):
        front["base_model"] = hub_id
    return yaml.safe_dump(front, sort_keys=True)


def without_places(typed: str) -> str:
    """A model or text as a card names it: hub ids and names as they were typed, of local files and folders the name alone."""
    if _is_local(typed):
        return Path(typed).expanduser().resolve().name
    parts = [part.rpartition("=") for part in typed.split(",")]
    return ",".join(f"{Path(name).name if _is_local(name) else name}{equals}{share}" for name, equals, share in parts)


def _is_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or (bool(name) and os.path.exists(name))


def _hub_id(source: ModelSource) -> str:
    """The model's name on the hub; empty for one that lies on this machine alone."""
    snapshots = source.folder.resolve().parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        return snapshots.parent.name.removeprefix("models--").replace("--", "/", 1)
    return source.name if _HUB_ID.fullmatch(source.name) and not Path(source.name).exists() else ""


def told_by(source: ModelSource) -> dict[str, Any]:
    """What the model's own card says of its licence, `unknown` where it says nothing; of a model of ours, its origin, too."""
    front = _FRONT.match(read_card(source))
    try:
        told = yaml.safe_load(front[1]) if front else {}
    except Exception:  # somebody else's YAML may raise anything: it is no reason to lose a run
        told = {}
    words = {key: value for key, value in told.items() if _is_plain(value)} if isinstance(told, dict) else {}
    keys = ["license", "license_name", "license_link"] if words.get("license") else []
    if (source.folder / RECORD).is_file() and _HUB_ID.fullmatch(str(words.get("base_model"))):
        keys.append("base_model")
    return {"license": "unknown"} | {key: words[key] for key in keys if key in words}


def _is_plain(value: Any) -> bool:
    """A word, or a short list of words."""
    if isinstance(value, list):
        return 0 < len(value) <= 20 and all(isinstance(part, str) and len(part) <= 200 for part in value)
    return isinstance(value, str) and len(value) <= 200
