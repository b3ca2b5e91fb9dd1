"""Which heads and columns of a masked module add nothing, by its zeros.

Tensors are keyed by their names within the module. Letters: R = hidden size, Q = query heads, D = head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darwinlm.models.shape import LayerWidths


def live_heads(attention: Mapping[str, Tensor], widths: LayerWidths, head_dim: int) -> list[int]:
    """Query heads that add something: neither their columns of o nor the values of their KV head are all zero.

    Where none does but o has a bias that is not zero, the first head stays, and the bias with it.
    """
    output = attention["o_proj.weight"].unflatten(1, (widths.heads, head_dim))  # (R, Q, D)
    live = (output != 0).any(2).any(0)
    group = widths.heads // widths.kv_heads
    live &= _live_rows(attention, "v_proj").unflatten(0, (-1, head_dim)).any(1).repeat_interleave(group)
    return _or_first(live, attention.get("o_proj.bias"))


def live_columns(mlp: Mapping[str, Tensor]) -> list[int]:
    """Channels that add something: neither their column of down nor their rows of gate or up are all zero.

    Where none does but down has a bias that is not zero, the first channel stays, and the bias with it.
    """
    live = (mlp["down_proj.weight"] != 0).any(0)
    live &= _live_rows(mlp, "gate_proj") & _live_rows(mlp, "up_proj")  # SiLU(0) = 0
    return _or_first(live, mlp.get("down_proj.bias"))


def _live_rows(module: Mapping[str, Tensor], matrix: str) -> Tensor:
    live = (module[f"{matrix}.weight"] != 0).any(1)
    bias = module.get(f"{matrix}.bias")
    return live if bias is None else live | (bias != 0)


def _or_first(live: Tensor, bias: Tensor | None) -> list[int]:
    kept = live.nonzero().flatten().tolist()
    return kept or ([0] if bias is not None and bool(torch.any(bias != 0)) else [])
