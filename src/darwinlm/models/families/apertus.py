"""Apertus: an MLP without a gate, whose activation is learnt; queries and keys normalized per head."""

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

FAMILIES = (
    Family(
        model_type="apertus",
        prefix="Apertus",
        sites=(attention(norms=("attention_layernorm",)), mlp(gate=None, norms=("feedforward_layernorm",), saved=6)),
        no_graph="has an MLP without a gate",
    ),
)
