"""Which heads and columns of a masked module add nothing, by its zeros.

Tensors are keyed by their names within the layer. Letters: R = hidden size, Q = query heads, D = head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from darwinlm.models.experts import GROUPED
from darwinlm.models.sites import Part, Site
from darwinlm.models.widths import LayerWidths


def live_heads(site: Site, tensors: Mapping[str, Tensor], widths: LayerWidths) -> list[int]:
    """Query heads that add something: neither their columns of the output matrix nor the values of their KV head are zero.

    Where none does but the output matrix has a bias that is not zero, the first head stays, and the bias with it. Where
    heads may not leave alone, all stay or none.
    """
    output = tensors[f"{site.output}.weight"].unflatten(1, (widths.heads, -1))  # (R, Q, D)
    live = (output != 0).any(2).any(0)
    group = widths.heads // widths.kv_heads
    live &= _live_units(site, tensors, "value", widths).repeat_interleave(group)
    kept = _or_first(live, tensors.get(f"{site.output}.bias"))
    return list(range(widths.heads)) if site.whole and kept else kept


def live_columns(site: Site, tensors: Mapping[str, Tensor], widths: LayerWidths, config: Any) -> list[int]:
    """Channels that add something: neither their column of the output matrix nor their rows in front of it are zero.

    Where none does but the output matrix has a bias that is not zero, the first channel stays, and the bias with it. Experts
    all stay, since tokens still go to those that add nothing, and equally wide.
    """
    live = (tensors[f"{site.output}.weight"] != 0).any(0)
    cuts = [cut for cut in site.cuts if cut.part != "expert"]
    gated, silent = len(cuts) > 1, _is_silent_at_zero(config)
    for cut in cuts:
        if silent or (gated and cut.part == "up"):
            live &= _live_units(site, tensors, cut.part, widths)
    live = _evened(live.unflatten(0, (max(widths.experts, 1), -1)))
    return _or_first(live, tensors.get(f"{site.output}.bias"))


def _evened(live: Tensor) -> Tensor:
    """(E, I) live columns of experts -> (E I,): as many of each, filled up with such as add nothing; of one MLP as they are."""
    most = int(live.sum(1).max())
    wide = -(-most // GROUPED) * GROUPED if len(live) > 1 else most
    order = live.int().argsort(dim=1, descending=True, stable=True)[:, :wide]
    return torch.zeros_like(live).scatter(1, order, True).flatten()


def activation(config: Any) -> str:
    """The name of the MLP's activation."""
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _is_silent_at_zero(config: Any) -> bool:
    """Whether the activation of nothing is nothing; one that has parameters of its own is not taken for it."""
    function = ACT2FN[activation(config)]
    return not list(function.parameters()) and float(function(torch.zeros(1))) == 0.0


def _live_units(site: Site, tensors: Mapping[str, Tensor], part: Part, widths: LayerWidths) -> Tensor:
    rows = site.part(part, tensors, widths.counts).values()
    live = torch.stack([(tensor != 0).flatten(1).any(1) if tensor.ndim > 1 else tensor != 0 for tensor in rows]).any(0)
    return live.unflatten(0, (widths.counts[part], -1)).any(1)


def _or_first(live: Tensor, bias: Tensor | None) -> list[int]:
    kept = live.nonzero().flatten().tolist()
    return kept or ([0] if bias is not None and bool(torch.any(bias != 0)) else [])
