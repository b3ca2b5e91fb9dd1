"""All levels of all modules in formats, each rounded in second order by what the dense model feeds it, before a search weighs them.

Rounding to the nearest would mislead a search: second order takes back most of what a coarse format costs, and nothing of what
a lost width does. A level is the least-squares solution of its columns, so the error of its output is that of pruning plus
tr(dQ H dQ^T), dQ of the rounding (arXiv 2210.17323).

Letters: C = columns of an output matrix, H = hidden size, P as in `database.fronts`.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import groupby

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.database.fronts import round_fronts, watched_fronts
from darwinlm.database.hessians import block_hessians, damp
from darwinlm.database.levels import Ladder
from darwinlm.errors import CalibrationError
from darwinlm.formats.rounding import DAMPING, inverse_factor, rounded_in_order, stored
from darwinlm.models.blocks import BlockStream
from darwinlm.models.sites import Kind
from darwinlm.models.stock import Block
from darwinlm.runtime import ranks
from darwinlm.runtime.placement import Placement
from darwinlm.runtime.progress import progress

Moments = dict[Kind, tuple[Tensor, Tensor]]
"""Second moments of what the matrices in front of an output matrix are fed (P, H, H), and of what that is fed (C, C)."""


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
            found: dict[str, list[str]] = {}
            for ladder, own in groupby(ranks.shard(here), lambda one: one[0]):
                try:
                    made = _in_formats(assembler, ladder, [f for _, f in own], *moments[ladder.kind])
                except CalibrationError as fault:
                    raise CalibrationError(f"{ladder.name}: {fault}") from fault
                for format_, tensors in made.items():
                    found |= levels.write(ladder, format_, tensors)
            if here:
                everyone = {file: known for share in ranks.all_gather(found) for file, known in share.items()}
                levels.admit(everyone, save=ranks.is_first())
            del moments  # before those of the next block are summed
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
    attends = "attention" in block.kinds
    with ExitStack() as watching:
        if attends:  # also where its files are there: so the numbers do not depend on where the work was broken off
            watching.enter_context(block.telling_attention())
        fronts = {kind: watching.enter_context(watched_fronts(block, kind, tokens)) for kind in by_kind}
        outputs = block_hessians(stream, block, hidden, list(by_kind), tokens, 1 if attends else batch)
    found: Moments = {}
    for kind, ladder in by_kind.items():
        found[kind] = (ranks.all_reduce(fronts[kind]), ranks.all_reduce(outputs[kind][0, 0]))
        for moments in (*fronts[kind], outputs[kind][0, 0]):
            damp(moments, DAMPING, ladder.name)
    return found


def _in_formats(
    assembler: Assembler, ladder: Ladder, formats: list[str], fronts: Tensor, output: Tensor
) -> dict[str, dict[str, Tensor]]:
    """One module in each of some formats, as it is written."""
    site, units = assembler.source.family.site(ladder.kind), assembler.source.shape.layers[ladder.layer].counts
    made = round_fronts(site, assembler.in_front(ladder, ""), units, fronts, formats)
    found = {f: {name: stored(matrix, f) for name, matrix in matrices.items()} for f, matrices in made.items()}
    del made
    for level in range(ladder.level(ladder.present), ladder.level(ladder.top)):
        rung = ladder.rung(level, "")
        matrix = assembler.before_rounding(ladder, rung)[assembler.output_name(ladder)].to(output)
        moments = torch.eye(matrix.shape[1]).to(output) * output.diagonal().mean()
        places = assembler.places(ladder, rung).to(output.device)
        kept = assembler.database.kept(ladder.name, level).to(output.device)
        live = (matrix[:, places] != 0).any(0)  # nothing is made up for by padding, or by what is never fed
        places, kept = places[live], kept[live]
        moments[places[:, None], places] = output[kept[:, None], kept]
        upper = inverse_factor(moments)
        for format_, matrices in found.items():
            matrices[f"level.{level}"] = stored(rounded_in_order(matrix, upper, format_), format_)
    return found
