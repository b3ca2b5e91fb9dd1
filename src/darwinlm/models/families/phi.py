"""Phi-3 and Phi-4: Llama's block with fused projections."""

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

FAMILIES = (
    Family(
        model_type="phi3",
        prefix="Phi3",
        sites=(
            attention(queries="qkv_proj", keys="qkv_proj", values="qkv_proj"),
            mlp(gate="gate_up_proj", up="gate_up_proj"),
        ),
        graph="deci",
    ),
)
