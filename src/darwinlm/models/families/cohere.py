"""Cohere's Command models: attention and MLP side by side behind one norm; a scale on the logits."""

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

_SITES = (
    attention(norms=(), shared_norms=("input_layernorm",), head_norms=("q_norm", "k_norm")),
    mlp(norms=(), shared_norms=("input_layernorm",)),
)

FAMILIES = tuple(
    Family(
        model_type=model_type,
        prefix=prefix,
        sites=_SITES,
        head=lambda config: (config.logit_scale, None),
        no_graph="has attention and MLP side by side",
    )
    for model_type, prefix in (("cohere", "Cohere"), ("cohere2", "Cohere2"))
)
