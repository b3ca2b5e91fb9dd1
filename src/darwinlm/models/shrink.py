"""How the tensors of one module shrink: rows of q, k, v, gate and up; the output matrix comes refitted.

Tensors are keyed by their names within the module, such as `q_proj.weight`. Letters: R = hidden size, k = kept columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from darwinlm.models.attention import AttentionLayout, heads_of_columns


def shrink_mlp(dense: Mapping[str, Tensor], kept: Tensor, output: Tensor) -> dict[str, Tensor]:
    """The MLP with columns `kept` (k,) alone and the refitted `output` (R, k) as its down projection."""
    shrunk = {"down_proj.weight": output}
    for name, tensor in dense.items():
        if name.startswith(("gate_proj", "up_proj")):
            shrunk[name] = tensor.index_select(0, kept.to(tensor.device))
        elif name != "down_proj.weight":
            shrunk[name] = tensor
    return shrunk


def shrink_attention(
    dense: Mapping[str, Tensor], layout: AttentionLayout, kept: Tensor, output: Tensor, head_dim: int
) -> dict[str, Tensor]:
    """The attention in `layout`, with the refitted `output` (R, k) of the `kept` columns (k,) as its output matrix.

    Padding queries get zero rows in q and zero columns in o, so they add nothing to the output.
    """
    place = {head: i for i, head in enumerate(heads_of_columns(kept.tolist(), head_dim))}
    columns = [place[head] if head is not None else None for head in layout.queries]
    shrunk = {"o_proj.weight": _take_heads(output.T, columns, head_dim).T.contiguous()}
    for name, tensor in dense.items():
        if name.startswith("q_proj"):
            shrunk[name] = _take_heads(tensor, layout.queries, head_dim)
        elif name.startswith(("k_proj", "v_proj")):
            shrunk[name] = _take_heads(tensor, layout.keys, head_dim)
        elif name != "o_proj.weight":
            shrunk[name] = tensor
    return shrunk


def _take_heads(tensor: Tensor, heads: Sequence[int | None], head_dim: int) -> Tensor:
    """Rows of the given heads, in that order; None gives zeros. `tensor` is (heads * D, ...)."""
    source = tensor.unflatten(0, (-1, head_dim))
    if None not in heads:
        return source[torch.tensor(heads, device=tensor.device)].flatten(0, 1)
    taken = source.new_zeros((len(heads), *source.shape[1:]))
    for place, head in enumerate(heads):
        if head is not None:
            taken[place] = source[head]
    return taken.flatten(0, 1)
