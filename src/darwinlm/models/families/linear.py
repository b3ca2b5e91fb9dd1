"""Layers with linear attention between those with heads: Qwen3.5, whose queries bring a gate for what their head puts out."""

from darwinlm.models.family import Family

FAMILIES = (
    Family(
        model_type="qwen3_5_text",
        prefix="Qwen3_5",
        package="qwen3_5",
        config_class="Qwen3_5TextConfig",
        model_class="Qwen3_5TextModel",
        linear_heads=("linear_num_key_heads", "linear_num_value_heads"),
        no_graph="has layers with linear attention",
    ),
)
