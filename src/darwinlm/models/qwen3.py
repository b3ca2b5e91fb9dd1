"""Qwen3: queries and keys are normalized per head."""

from darwinlm.models.family import Family

QWEN3 = Family(
    model_type="qwen3",
    prefix="Qwen3",
    qkv_bias=lambda config: config.attention_bias,
    o_bias=lambda config: config.attention_bias,
    qk_norm=True,
)
