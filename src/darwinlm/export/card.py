"""The model card of a pruned checkpoint: what it is, how it was made, how it is loaded."""

from __future__ import annotations

from typing import Any

import yaml

from darwinlm.models.shape import ModelShape
from darwinlm.models.source import ModelSource

_TOLD = """pruned by [DarwinLM](https://arxiv.org/abs/2502.07780): second-order structured pruning of attention heads,
MLP columns and whole modules, with the level of each module found by training-aware evolutionary search.
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

model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH", trust_remote_code=True)
```
Layers differ in width, which stock modeling code does not know yet; `modeling_darwinlm.py` beside the weights is all
that is needed besides transformers >= 5.14. It is short: read it before you trust it.

## How it was made
{facts}

| layer | attention level | query heads | KV heads | MLP level | MLP columns |
|---|---|---|---|---|---|
{rows}
"""


def model_card(
    source: ModelSource, shape: ModelShape, levels: dict[str, int], facts: dict[str, Any], told: str = _TOLD
) -> str:
    """The card as Markdown.

    Args:
        source: the dense checkpoint.
        shape: the pruned widths.
        levels: {module name: level}.
        facts: what is told of the making, a line each.
        told: what was done to the dense model, after its name.
    """
    title = (
        source.folder.name
        if source.folder.is_dir() and "/" not in source.name.strip("/")
        else source.name.rstrip("/").split("/")[-1]
    )
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["darwinlm", "pruned"],
        "pipeline_tag": "text-generation",
    }
    if _is_hub_id(source.name):
        front["base_model"] = source.name
    front |= _licence(source)
    rows = []
    for layer, widths in enumerate(shape.layers):
        attention, mlp = (levels.get(f"model.layers.{layer}.{module}", "-") for module in ("self_attn", "mlp"))
        rows.append(f"| {layer} | {attention} | {widths.heads} | {widths.kv_heads} | {mlp} | {widths.intermediate} |")
    return _TEMPLATE.format(
        front=yaml.safe_dump(front, sort_keys=True),
        title=f"{title}, pruned",
        dense=f"`{source.name if _is_hub_id(source.name) else title}`",
        told=told,
        dense_parameters=source.shape.parameters,
        parameters=shape.parameters,
        dense_layers=source.shape.layer_parameters,
        layers=shape.layer_parameters,
        dense_cache=source.shape.kv_cache_values_per_token,
        cache=shape.kv_cache_values_per_token,
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        rows="\n".join(rows),
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _licence(source: ModelSource) -> dict[str, Any]:
    """What the dense model's own card says of its licence; `unknown` where it says nothing."""
    card = source.folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    try:
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except yaml.YAMLError:
        front = {}
    named = front if isinstance(front, dict) and front.get("license") else {"license": "unknown"}
    return {key: named[key] for key in ("license", "license_name", "license_link") if key in named}
