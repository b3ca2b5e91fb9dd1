"""Second moments of what the output matrices of a block are fed, accumulated as the block runs.

Letters: S = sequences, T = tokens in a sequence, H = hidden size, C = columns of an output matrix.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from darwinlm.database.columns import mirror, update_lower
from darwinlm.errors import CalibrationError
from darwinlm.models.blocks import BlockStream
from darwinlm.models.sites import Kind
from darwinlm.models.stock import Block
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import log

CHECKS = 8
"""Of so many sequences one is held back: the second, the tenth, ..."""


def block_hessians(
    stream: BlockStream,
    block: Block,
    hidden: Tensor,
    kinds: list[Kind],
    tokens: int,
    batch: int,
    *,
    hold_back: bool = False,
) -> dict[Kind, Tensor]:
    """Run a block once over all sequences and accumulate H = X X^T / tokens for its output matrices.

    Args:
        stream: where the block came from.
        block: one decoder layer.
        hidden: (S, T, H) inputs of the block on this rank; replaced by its outputs.
        kinds: the modules that are wanted, of those that the block has.
        tokens: calibration tokens of all ranks.
        batch: sequences in a forward pass.
        hold_back: add up every CHECKS-th sequence apart from the others.

    Returns:
        float32 (P, E, C / E, C / E) per kind, undamped, of the tokens of this rank: the parts whose sum is H, the one held
        back last, of each of E experts' columns; E is 1 where there are none.
    """
    hessians: dict[Kind, Tensor] = {}
    with ExitStack() as hooks:
        for kind in kinds:
            matrix = block.output_matrix(kind)
            columns = matrix.in_features // block.parts(kind)
            hessians[kind] = torch.zeros(1 + hold_back, block.parts(kind), columns, columns, device=stream.device)
            hooks.enter_context(matrix.register_forward_pre_hook(_accumulating(hessians[kind], tokens)))
        stream.forward(block, hidden, batch)
    for hessian in hessians.values():
        for part in hessian.flatten(0, 1):
            mirror(part)
    return hessians


def _accumulating(parts: Tensor, tokens: int):
    seen = ranks.rank()  # sequences are dealt out in turn

    def hook(module: nn.Module, arguments: tuple[Tensor]) -> None:
        nonlocal seen
        place = torch.arange(len(arguments[0])) * ranks.world_size() + seen
        seen += len(place) * ranks.world_size()
        held = (place % CHECKS == 1).to(arguments[0].device)
        for part, mine in zip(parts, (~held, held)) if len(parts) > 1 else ((parts[0], slice(None)),):
            for total, x in zip(part, arguments[0][mine].flatten(0, -2).float().chunk(len(part), 1)):
                routed = x[x.any(1)] if len(part) > 1 else x
                update_lower(total, routed, routed, 1 / tokens)

    return hook


def damp(hessian: Tensor, rel_damp: float, name: str) -> float:
    """Add rel_damp * mean(diag H) to the diagonal, in place; returns what was added.

    Raises:
        CalibrationError: the Hessian is not finite.
    """
    mean = hessian.diagonal().mean().item()
    if not torch.isfinite(hessian).all():
        raise CalibrationError(
            f"{name}: the calibration inputs hold NaN or Inf. Run with --dtype float32, and check that the checkpoint "
            "itself gives finite logits."
        )
    if mean == 0:  # masked already, or never active: it adds nothing, and no level of it costs anything
        log.warning("%s: all calibration inputs are zero; it adds nothing to this text.", name)
        hessian.diagonal().add_(1.0)
        return 1.0
    hessian.diagonal().add_(rel_damp * mean)
    return rel_damp * mean


def drop_dead_columns(weight: Tensor, hessian: Tensor) -> tuple[Tensor, int]:
    """Zero the columns whose inputs were never active, which changes no output: they then leave first, at no cost.

    Args:
        weight: (R, C), left unchanged.
        hessian: (C, C), undamped.
    """
    dead = hessian.diagonal() == 0
    return weight.masked_fill(dead, 0.0), int(dead.sum())
