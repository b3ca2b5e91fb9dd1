"""How many of the first layers a refit helps: KL of the model with more and more of them refitted, on blocks of its own.

The models are carried through each layer together: they are one up to where their refit ends. No model is whole in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darwinlm.losses import token_kls
from darwinlm.models.blocks import BlockStream
from darwinlm.refit.blocks import put
from darwinlm.refit.store import Refits
from darwinlm.runtime.progress import progress

JUDGED_TOKENS = 16_384
"""Tokens of blocks.select that say how many layers a refit helps."""
DEPTHS = 6
"""Parts of the layers, behind each of which it may end."""
DOUBT = 2.0
"""Standard errors of paired blocks within which two KLs are alike."""
_BATCH = 8
"""Sequences in a forward pass."""


def judge(refits: Refits, dense: BlockStream, pruned: BlockStream, blocks: Tensor) -> None:
    """Decide how many layers are to have their refit.

    Args:
        refits: finished.
        dense: the model to compare with.
        pruned: the model without its refit.
        blocks: (S, T) ids that nothing was fitted to, as far as they are looked at.
    """
    tokens = blocks[: max(1, JUDGED_TOKENS // blocks.shape[1])]
    ends = {len(dense) * part // DEPTHS for part in range(DEPTHS + 1)}
    target, refitted, ended = dense.final_hidden(tokens, _BATCH), pruned.embed(tokens), dict[int, Tensor]()
    with progress("Refit, judged", total=len(dense)) as advance:
        for layer, block in enumerate(pruned.blocks()):
            if layer in ends:
                ended[layer] = refitted.clone()
            for hidden in ended.values():
                pruned.forward(block, hidden, _BATCH)
            put(block, refits.read(layer))
            pruned.forward(block, refitted, _BATCH)
            advance(f"layer {layer}")
    ended[len(dense)] = refitted
    heads = [stream.source.head().to(dense.device, torch.float32) for stream in (dense, pruned)]
    kls: dict[int, Tensor] = {}
    with progress("Refit, judged, KL", total=len(ended)) as advance:
        for depth, hidden in ended.items():
            ours = pruned.final_norm(hidden)
            kls[depth] = token_kls(target.flatten(0, 1), ours.flatten(0, 1), *heads).view(tokens.shape).mean(1)
            advance(f"{depth} layers")
    settle(refits, kls)


def settle(refits: Refits, kls: Mapping[int, Tensor]) -> None:
    """Keep KL by depth, and the depth that is chosen by it; `kls` as in `best_depth`."""
    refits.keep_judged({depth: kl.mean().item() for depth, kl in kls.items()}, best_depth(kls))


def best_depth(kls: Mapping[int, Tensor]) -> int:
    """As few of the first layers as are not worse than the best beyond doubt.

    Args:
        kls: first layers that have their refit -> KL to the dense model on the same blocks (S,); 0 among them.
    """
    best = min(kls, key=lambda depth: kls[depth].mean().item())
    behind = {depth: kl - kls[best] for depth, kl in kls.items() if 0 < depth <= best}
    doubt = {depth: DOUBT * by.std(correction=0) / max(1, len(by) - 1) ** 0.5 for depth, by in behind.items()}
    return min((best, *(depth for depth, by in behind.items() if by.mean() <= doubt[depth])))
