"""Groups leave by the norm of their columns in the output matrix, least first, and nothing is refitted.

That is what the second-order step does where the Hessian is the identity: the score of a group is the square of its norm,
no removal changes another group, and the best refit of what stays is what it was. So the levels come from the same
code, with the same ladders and the same files.
"""

from __future__ import annotations

import torch

from darwinlm.database.hessians import output_weight
from darwinlm.database.levels import Ladder
from darwinlm.database.obs import prune_groups
from darwinlm.database.store import NO_HESSIAN, Database
from darwinlm.models.blocks import BlockStream
from darwinlm.runtime.progress import progress


def build_magnitude_database(database: Database, ladders: list[Ladder], stream: BlockStream) -> None:
    """Complete a database by the rule of magnitude; modules that it already has are not made again.

    Its errors are the squared norms of what left.

    Args:
        database: empty or begun.
        ladders: the modules wanted.
        stream: the dense model; no text passes through it.
    """
    missing = [ladder for ladder in ladders if ladder.name not in database.modules]
    if not missing:
        return
    last = max(ladder.layer for ladder in missing)
    with progress("Magnitudes", total=last + 1) as advance:
        for layer, block in enumerate(stream.blocks(last + 1)):
            records = []
            for ladder in (ladder for ladder in missing if ladder.layer == layer):
                weight = output_weight(block, ladder.kind)
                identity = torch.eye(ladder.columns, device=weight.device)
                levels = prune_groups(
                    weight, identity, group_size=ladder.group_size, counts=ladder.removed, rounds=ladder.rounds
                )
                records.append(database.write(ladder, levels, stream.source.dtype_of(ladder.output), **NO_HESSIAN))
            database.admit(records, save=bool(records))
            advance(f"layer {layer}")
