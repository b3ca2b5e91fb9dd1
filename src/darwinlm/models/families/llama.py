"""Llama's block: a norm before attention and one before a gated MLP."""

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

FAMILIES = (
    Family(model_type="llama", prefix="Llama", graph="deci"),
    Family(model_type="mistral", prefix="Mistral", graph="deci"),
    Family(model_type="ministral", prefix="Ministral", graph="deci"),
    Family(model_type="ministral3", prefix="Ministral3", no_graph="scales queries by their position"),
    Family(model_type="qwen2", prefix="Qwen2", graph="deci"),
    Family(model_type="qwen3", prefix="Qwen3", graph="openelm", stock_graph="qwen3"),  # norms of each query and key
    Family(model_type="seed_oss", prefix="SeedOss", graph="deci"),
    Family(model_type="helium", prefix="Helium", graph="deci", rope_pairs=True),
    Family(model_type="ernie4_5", prefix="Ernie4_5", graph="deci", rope_pairs=True),
    Family(model_type="smollm3", prefix="SmolLM3", no_graph="has layers without rotary embedding"),
    Family(
        model_type="hunyuan_v1_dense",
        prefix="HunYuanDenseV1",
        no_graph="normalizes queries and keys behind the rotary embedding",
    ),
    Family(
        model_type="granite",
        prefix="Granite",
        head=lambda config: (1.0 / config.logits_scaling, None),
        branch=lambda config: config.residual_multiplier,
        no_graph="multiplies embeddings, branches and logits",
    ),
    Family(
        model_type="arcee",
        prefix="Arcee",
        sites=(attention(), mlp(gate=None)),
        no_graph="has an MLP without a gate",
    ),
)
