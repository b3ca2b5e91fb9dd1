"""Llama 2, 3, 3.1, 3.2 and all that share their modeling code."""

from darwinlm.models.family import Family

LLAMA = Family(
    model_type="llama",
    prefix="Llama",
    qkv_bias=lambda config: config.attention_bias,
    o_bias=lambda config: config.attention_bias,
    mlp_bias=lambda config: config.mlp_bias,
)
