"""What a model family must say about itself; the registry of those we know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from darwinlm.errors import RequestError

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Fields that only configurations of experts have."""


def _never(config: Any) -> bool:
    return False


@dataclass(frozen=True)
class Family:
    """A decoder family of transformers: pre-norm blocks of self_attn (q, k, v, o) and mlp (gate, up, down).

    The four questions are asked of the model's configuration object.
    """

    model_type: str
    """transformers' `model_type`, also the name of its package under `transformers.models`."""
    prefix: str
    """What the family's class names begin with, such as `Llama`."""
    qkv_bias: Callable[[Any], bool] = _never
    """Have q, k and v biases?"""
    o_bias: Callable[[Any], bool] = _never
    """Has the attention's output matrix a bias?"""
    mlp_bias: Callable[[Any], bool] = _never
    """Have gate, up and down biases?"""
    qk_norm: bool = False
    """Are queries and keys normalized per head?"""


def known_families() -> dict[str, Family]:
    """The families by `model_type`. A new one is one small file and one line here."""
    from darwinlm.models.llama import LLAMA
    from darwinlm.models.mistral import MISTRAL
    from darwinlm.models.qwen2 import QWEN2
    from darwinlm.models.qwen3 import QWEN3

    return {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}


def family_of(values: Mapping[str, Any], name: str) -> Family:
    """The family of a model by the fields of its config.json.

    Raises:
        RequestError: we do not know it; says what stands in the way where that can be seen, and lists those we do.
    """
    families, model_type = known_families(), str(values.get("model_type"))
    if model_type in families:
        return families[model_type]
    raise RequestError(
        f"'{name}' is of the family {model_type!r:.60}, which DarwinLM does not know{_obstacle(values)}. It knows: "
        f"{', '.join(sorted(families))}. What a family must be: docs/architecture.md, Models."
    )


def _obstacle(values: Mapping[str, Any]) -> str:
    """What is visibly different about a model, as the end of a sentence."""
    inner = values.get("text_config")
    if isinstance(inner, dict):
        return f"; it is multimodal, and its text model is of the family {inner.get('model_type')!r:.60}"
    if any(values.get(key) for key in EXPERTS):
        return "; its layers have experts"
    return ""
