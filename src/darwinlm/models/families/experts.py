"""Mixtures of experts: a router before the MLPs of a layer, of which each token takes a few."""

from darwinlm.models.experts import Experts
from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

_MLP = mlp(router="gate")
_NO_GRAPH = "has experts, whose number llama.cpp reads once for all layers"

FAMILIES = (
    Family(
        model_type="qwen3_moe",
        prefix="Qwen3Moe",
        sites=(attention(), _MLP),
        experts=Experts(count="num_local_experts", width="moe_intermediate_size"),
        no_graph=_NO_GRAPH,
        stock_graph="qwen3moe",
    ),
    Family(
        model_type="mixtral",
        prefix="Mixtral",
        sites=(attention(), _MLP),
        experts=Experts(
            count="num_local_experts",
            width="intermediate_size",
            words=(("mlp", "block_sparse_moe"), ("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")),
        ),
        no_graph=_NO_GRAPH,
        stock_graph="llama",
    ),
    Family(
        model_type="olmoe",
        prefix="Olmoe",
        sites=(attention(whole="its queries and keys are normalized over all heads together"), _MLP),
        experts=Experts(count="num_experts", width="intermediate_size"),
        no_graph=_NO_GRAPH,
        stock_graph="olmoe",
    ),
)
