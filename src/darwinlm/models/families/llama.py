"""Llama's block: a norm before attention and before a gated MLP."""

from darwinlm.models.family import Family

FAMILIES = (
    Family(model_type="llama", prefix="Llama", graph="deci"),
    Family(model_type="mistral", prefix="Mistral", graph="deci"),
    Family(model_type="qwen2", prefix="Qwen2", graph="deci"),
    Family(model_type="qwen3", prefix="Qwen3", graph="openelm"),  # queries and keys normalized per head
)
