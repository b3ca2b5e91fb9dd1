"""OLMo 2 and 3, and EXAONE 4: norms behind the modules alone; OLMo normalizes the queries of all heads together."""

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

_MLP = mlp(norms=("post_feedforward_layernorm",), post_norm="post_feedforward_layernorm")
_NORM = "post_attention_layernorm"
_ATTENTION = attention(norms=(_NORM,), post_norm=_NORM)
_TOGETHER = attention(
    norms=(_NORM,), post_norm=_NORM, whole="its queries and keys are normalized over all heads together"
)
_BEHIND = "normalizes what its modules put out"

FAMILIES = (
    Family(model_type="olmo2", prefix="Olmo2", sites=(_TOGETHER, _MLP), no_graph=_BEHIND),
    Family(model_type="olmo3", prefix="Olmo3", sites=(_TOGETHER, _MLP), no_graph=_BEHIND),
    Family(model_type="exaone4", prefix="Exaone4", sites=(_ATTENTION, _MLP), no_graph=_BEHIND),
)
