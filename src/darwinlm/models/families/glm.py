"""GLM-4: gate and up in one matrix; from 0414 on norms behind the modules, too."""

from darwinlm.models.family import Family
from darwinlm.models.sites import attention, mlp

FAMILIES = (
    Family(
        model_type="glm",
        prefix="Glm",
        sites=(attention(), mlp(gate="gate_up_proj", up="gate_up_proj")),
        no_graph="rotates only a part of each head",
    ),
    Family(
        model_type="glm4",
        prefix="Glm4",
        sites=(
            attention(norms=("input_layernorm", "post_self_attn_layernorm"), post_norm="post_self_attn_layernorm"),
            mlp(
                gate="gate_up_proj",
                up="gate_up_proj",
                norms=("post_attention_layernorm", "post_mlp_layernorm"),
                post_norm="post_mlp_layernorm",
            ),
        ),
        no_graph="normalizes what its modules put out",
    ),
)
