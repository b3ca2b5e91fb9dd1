"""Gemma 1 to 3, the text models: scaled embeddings; from the second on norms behind the modules, too, and windows."""

from typing import Any

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

_NORMED = (
    attention(norms=("input_layernorm", "post_attention_layernorm"), post_norm="post_attention_layernorm"),
    mlp(norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"), post_norm="post_feedforward_layernorm"),
)


def _capped(config: Any) -> tuple[float, float | None]:
    return 1.0, config.final_logit_softcapping


FAMILIES = (
    Family(model_type="gemma", prefix="Gemma", begins=True, no_graph="scales its embeddings and has GELU"),
    Family(
        model_type="gemma2",
        prefix="Gemma2",
        sites=_NORMED,
        head=_capped,
        begins=True,
        no_graph="normalizes what its modules put out",
    ),
    Family(
        model_type="gemma3_text",
        prefix="Gemma3",
        sites=_NORMED,
        package="gemma3",
        config_class="Gemma3TextConfig",
        model_class="Gemma3TextModel",
        head=_capped,
        begins=True,
        no_graph="normalizes what its modules put out",
    ),
)
