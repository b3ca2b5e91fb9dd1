"""How the tensors of one module shrink: rows of its parts leave; the output matrix comes refitted.

Tensors are keyed by their names within the layer. Letters: R = hidden size, k = kept columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from darwinlm.models.attention import AttentionLayout, heads_of_columns
from darwinlm.models.experts import experts_of
from darwinlm.models.sites import Part, Site
from darwinlm.models.widths import LayerWidths

Rows = Tensor | Sequence[int | None]
"""Units that stay, in that order; None gives zeros."""


def shrink_mlp(
    site: Site, dense: Mapping[str, Tensor], before: LayerWidths, kept: Tensor, output: Tensor
) -> dict[str, Tensor]:
    """The MLP with columns `kept` (k,) of those `before` alone, and the refitted `output` (R, k) as its output matrix."""
    rows: dict[Part, Rows] = {"gate": kept, "up": kept}
    if before.experts:
        rows["expert"] = experts_of(kept, before.intermediate)
    return _shrunk(site, dense, before, rows, output)


def shrink_attention(
    site: Site, dense: Mapping[str, Tensor], before: LayerWidths, layout: AttentionLayout, kept: Tensor, output: Tensor
) -> dict[str, Tensor]:
    """The attention in `layout`, with the refitted `output` (R, k) of the `kept` columns (k,) as its output matrix.

    Padding queries get zero rows and zero columns of the output matrix, so they add nothing to the output.
    """
    head_dim = dense[f"{site.output}.weight"].shape[1] // before.heads
    place = {head: i for i, head in enumerate(heads_of_columns(kept.tolist(), head_dim))}
    columns = [place[head] if head is not None else None for head in layout.queries]
    heads = output.T.unflatten(0, (-1, head_dim))
    rows: dict[Part, Rows] = {"query": layout.queries, "key": layout.keys, "value": layout.keys}
    return _shrunk(site, dense, before, rows, _take(heads, columns).flatten(0, 1).T.contiguous())


def _shrunk(
    site: Site, dense: Mapping[str, Tensor], before: LayerWidths, rows: Mapping[Part, Rows], output: Tensor
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in dense.items():
        parts = site.split(name, tensor, before.counts)
        if parts:
            taken = [_take(part, rows[key]).flatten(0, 1) for key, part in parts.items()]
            found[name] = taken[0] if len(taken) == 1 else torch.cat(taken)
            found[name] = found[name].reshape(-1, *tensor.shape[1:])
        else:
            found[name] = output if name == f"{site.output}.weight" else tensor
    return found


def _take(units: Tensor, wanted: Rows) -> Tensor:
    """(units, ...) -> (wanted, ...)."""
    if isinstance(wanted, Tensor):
        return units.index_select(0, wanted.to(units.device))
    if None not in wanted:
        return units[torch.tensor(wanted, device=units.device)]
    taken = units.new_zeros((len(wanted), *units.shape[1:]))
    for place, unit in enumerate(wanted):
        if unit is not None:
            taken[place] = units[unit]
    return taken
