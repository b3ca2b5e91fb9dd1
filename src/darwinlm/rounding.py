"""All levels of all modules in formats, each rounded in second order by what the dense model feeds it, before a search weighs them.

Rounding to the nearest would mislead a search: second order takes back most of what a coarse format costs, and nothing of what
a lost width does. The error of a level's output is that of pruning plus tr(dQ H dQ^T), dQ of the rounding (arXiv 2210.17323).

Letters: C = columns of an output matrix, H = hidden size, k = columns that a level keeps.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.database.columns import mirror
from darwinlm.database.hessians import accumulating, block_hessians, damp
from darwinlm.database.levels import Ladder
from darwinlm.formats.rounding import DAMPING, rounded_in_order, stored
from darwinlm.models.blocks import BlockStream
from darwinlm.models.sites import Kind
from darwinlm.models.stock import Block
from darwinlm.runtime import ranks
from darwinlm.runtime.placement import Placement
from darwinlm.runtime.progress import progress

Moments = dict[Kind, tuple[Tensor, Tensor]]
"""Second moments of what the matrices in front of an output matrix are fed, all alike (H, H), and of what that is fed (C, C)."""


@torch.no_grad()
def round_levels(
    assembler: Assembler, stream: BlockStream, tokens: Tensor, batch: int, placement: Placement | None = None
) -> None:
    """Complete the levels in formats beside a database; modules that are finished in a format are not made again.

    Args:
        assembler: the levels and the formats.
        stream: the model that is pruned.
        tokens: (S, T) calibration blocks, the same on all ranks, which share them out, and then a block's modules.
        batch: sequences in a forward pass.
        placement: where the hidden states of all sequences lie; by default in host memory.

    Raises:
        CalibrationError: the calibration inputs of a module are not finite; names it.
    """
    levels, every = assembler.rounded, [(l, f) for l in assembler.space.ladders if l.columns for f in l.formats[1:]]
    missing = ranks.broadcast([(ladder, format_) for ladder, format_ in every if not levels.holds(ladder, format_)])
    if not missing:
        return
    last = max(ladder.layer for ladder, _ in missing)
    hidden = stream.embed(tokens[ranks.rank() :: ranks.world_size()], placement)
    with progress("Levels in formats", total=last + 1) as advance:
        for layer, block in enumerate(stream.blocks(last + 1)):
            here = [one for one in missing if one[0].layer == layer]
            moments = _moments(assembler, stream, block, hidden, [ladder for ladder, _ in here], tokens.numel(), batch)
            found: dict[str, str] = {}
            for ladder, format_ in ranks.shard(here):
                found |= levels.write(ladder, format_, _in_format(assembler, ladder, format_, *moments[ladder.kind]))
            for share in ranks.all_gather(found) if here else ():
                levels.admit(share, save=ranks.is_first())
            advance(f"layer {layer}")
    ranks.barrier()


def _moments(
    assembler: Assembler,
    stream: BlockStream,
    block: Block,
    hidden: Tensor,
    ladders: list[Ladder],
    tokens: int,
    batch: int,
) -> Moments:
    """Those of some modules of a block, damped; its outputs replace `hidden`."""
    by_kind: dict[Kind, Ladder] = {ladder.kind: ladder for ladder in ladders}
    fronts: dict[Kind, Tensor] = {}
    with ExitStack() as hooks:
        for kind, ladder in by_kind.items():
            front = block.layer.get_submodule(next(iter(assembler.in_front(ladder, ""))).removesuffix(".weight"))
            fronts[kind] = torch.zeros(1, 1, stream.shape.hidden, stream.shape.hidden, device=stream.device)
            hooks.enter_context(front.register_forward_pre_hook(accumulating(fronts[kind], tokens)))
        outputs = block_hessians(stream, block, hidden, list(by_kind), tokens, batch)
    found: Moments = {}
    for kind, ladder in by_kind.items():
        mirror(front := fronts[kind][0, 0])
        found[kind] = (ranks.all_reduce(front), ranks.all_reduce(outputs[kind][0, 0]))
        for moments in found[kind]:
            damp(moments, DAMPING, ladder.name)
    return found


def _in_format(assembler: Assembler, ladder: Ladder, format_: str, front: Tensor, output: Tensor) -> dict[str, Tensor]:
    """One module in a format, as it is written."""

    def in_order(matrix: Tensor, moments: Tensor) -> Tensor:
        return stored(rounded_in_order(matrix.to(moments), moments, format_), format_)

    found = {name: in_order(matrix, front) for name, matrix in assembler.in_front(ladder, "").items()}
    for level in range(ladder.level(ladder.present), ladder.level(ladder.top)):
        rung = ladder.rung(level, "")
        matrix = assembler.before_rounding(ladder, rung)[assembler.output_name(ladder)].to(output)
        moments = torch.eye(matrix.shape[1]).to(output) * output.diagonal().mean()
        places = assembler.places(ladder, rung).to(output.device)
        kept = assembler.database.kept(ladder.name, level).to(output.device)
        live = (matrix[:, places] != 0).any(0)  # padding, and what is never fed, stays zero
        places, kept = places[live], kept[live]
        moments[places[:, None], places] = output[kept[:, None], kept]
        found[f"level.{level}"] = in_order(matrix, moments)
    return found
