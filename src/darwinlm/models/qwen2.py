"""Qwen2 and Qwen2.5: biases on q, k and v."""

from darwinlm.models.family import Family

QWEN2 = Family(model_type="qwen2", prefix="Qwen2", qkv_bias=lambda config: True)
