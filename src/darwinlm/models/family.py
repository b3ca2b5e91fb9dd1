"""What a model family must say about itself; the registry of those we know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from darwinlm.errors import RequestError


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


def family_of(model_type: str, name: str) -> Family:
    """The family of a `model_type`.

    Raises:
        RequestError: we do not know it; lists those we do.
    """
    families = known_families()
    if model_type not in families:
        raise RequestError(
            f"'{name}' is of the family '{model_type}', which DarwinLM does not know. "
            f"It knows: {', '.join(sorted(families))}. A new family is one small file: see docs/architecture.md."
        )
    return families[model_type]
