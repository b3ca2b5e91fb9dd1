"""The matrices in front of an output matrix: what they are fed, and how they are rounded to formats.

All of a module's are fed the same X. What an error dW of the value matrix does passes through the attention A first: it puts out
A X dW^T, and the mean of that square over queries is about that of w_j |dW x_j|^2, with w_j the sum of A_ij^2 over queries
i and heads. So values are rounded by the moments of tokens that count as much as is looked at them. Where attention rests on a
few tokens, as the sinks of real models are, their values must be exact, though they are one in hundreds.

Letters: S = sequences, T = tokens in a sequence, H = hidden size, P = 1, or 2 where there are values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.database.columns import mirror, update_lower
from darwinlm.formats.rounding import inverse_factor, rounded_in_order
from darwinlm.models.sites import Kind, Site
from darwinlm.models.stock import Block


@contextmanager
def watched_fronts(block: Block, kind: Kind, tokens: int) -> Iterator[Tensor]:
    """The second moments X X^T / tokens (P, H, H), float32, of what the matrices in front of a module's output matrix are fed while
    the block runs within; the second, of an attention, with tokens weighted by w.

    Raises:
        TypeError: the family's attention does not tell what it looks at, or these are experts.
    """
    if block.parts(kind) > 1:
        raise TypeError("experts are fed apart, and are not watched")
    site, fed = block.family.site(kind), dict[str, Tensor]()
    front = next(cut.matrix for cut in site.cuts if not cut.norm)
    matrix: Any = block.layer.get_submodule(front)
    size, attends = matrix.in_features, kind == "attention"
    moments = torch.zeros(1 + attends, size, size, device=matrix.weight.device)

    def add(total: Tensor, x: Tensor) -> None:
        update_lower(total, x := x.flatten(0, -2).float(), x, 1 / tokens)

    def before(_: nn.Module, inputs: tuple[Tensor]) -> None:
        fed["x"] = inputs[0]
        add(moments[0], inputs[0])

    def attended(_: nn.Module, __: Any, output: Any) -> None:
        if output[1] is None:
            raise TypeError(f"the attention of {block.family} gives no weights")
        looked_at = output[1].float().square().sum((1, 2)).sqrt()  # (S, T)
        add(moments[1], fed.pop("x").float() * looked_at[..., None])

    with ExitStack() as hooks:
        hooks.enter_context(matrix.register_forward_pre_hook(before))
        if attends:
            hooks.enter_context(block.telling_attention())
            hooks.enter_context(block.layer.get_submodule(site.module).register_forward_hook(attended))
        yield moments
    for each in moments:
        mirror(each)


def round_fronts(
    site: Site, matrices: Mapping[str, Tensor], units: Mapping[Any, int], moments: Tensor, formats: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """The matrices in front in each of some formats, rounded in second order.

    Args:
        site: of the module.
        matrices: by their names within the layer, of H columns.
        units: of each part that they have.
        moments: from `watched_fronts`, damped.
        formats: what they are rounded to.

    Raises:
        CalibrationError: the moments are not positive definite.
    """
    whole = torch.cat([matrix.to(moments) for matrix in matrices.values()])
    values = torch.cat([_is_value(site, name, matrix, units) for name, matrix in matrices.items()]).to(whole.device)
    found = {format_: torch.empty_like(whole) for format_ in formats}
    for chosen, own in ((~values, moments[0]), (values, moments[-1])):
        if not chosen.any():
            continue
        upper = inverse_factor(own)
        for format_, rounded in found.items():
            rounded[chosen] = rounded_in_order(whole[chosen], upper, format_)
    rows = [len(matrix) for matrix in matrices.values()]
    return {format_: dict(zip(matrices, rounded.split(rows))) for format_, rounded in found.items()}


def _is_value(site: Site, name: str, matrix: Tensor, units: Mapping[Any, int]) -> Tensor:
    """(rows,) whether a row of a matrix makes values."""
    parts = site.split(name, matrix, units) or {"": matrix[None]}
    return torch.cat([torch.full((part.shape[0] * part.shape[1],), key == "value") for key, part in parts.items()])
