"""Candidates as they are, without training: all of them carried through a layer together, so that each is loaded once.

Candidates that begin alike are one up to the layer in which they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from darwinlm.assemble import Assembler
from darwinlm.genome import Genome
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import progress
from darwinlm.search.fitness import Targets


@torch.no_grad()
def final_hidden(
    assembler: Assembler, genomes: Sequence[Genome], targets: Targets, dtype: torch.dtype, title: str = "Candidates"
) -> list[tuple[Genome, Iterable[Tensor]]]:
    """Every genome with the inputs of its head: (sequences, T, H) for each batch of the targets.

    Args:
        assembler: gives the layers of candidates.
        genomes: at least one, all different.
        targets: the token blocks.
        dtype: arithmetic of the forward passes.
        title: of the progress.
    """
    source, device = assembler.source, targets.teacher.head.device
    streams, ladders = {genome: assembler.stream(genome, device, dtype) for genome in genomes}, assembler.space.ladders
    stream = streams[genomes[0]]
    embedded = [stream.embed(ids).to(device) for ids in targets.tokens()]
    states: dict[Genome, list[Tensor]] = {(): embedded}
    prefixes: dict[Genome, Genome] = dict.fromkeys(genomes, ())
    with progress(title, total=len(source.shape.layers)) as advance:
        for layer in range(len(source.shape.layers)):
            places, here = (
                [i for i, l in enumerate(ladders) if l.layer in layers] for layers in (range(layer + 1), (layer,))
            )
            further: dict[Genome, list[Tensor]] = {}
            block, levels = nn.Module(), None
            for genome in sorted(genomes, key=lambda genome: [genome[i] for i in here]):
                key = tuple(genome[i] for i in places)
                if key not in further:
                    if levels != (levels := [genome[i] for i in here]):
                        block = streams[genome].block(layer)
                    inputs = states[prefixes[genome]]
                    further[key] = [block(part) for part in inputs]
                prefixes[genome] = key
            states = further
            advance(f"{len(states)} different")
    norm = stream.norm()
    return [(genome, map(norm, states[prefixes[genome]])) for genome in genomes]


def untrained_kls(
    assembler: Assembler, genomes: Sequence[Genome], targets: Targets, dtype: torch.dtype, title: str = "Candidates"
) -> list[Tensor]:
    """Of every genome the (sequences,) parts of its KL to the dense model; the ranks share the genomes out.

    Arguments as in `final_hidden`; genomes may be equal.
    """
    own, head = list(dict.fromkeys(ranks.shard(list(genomes)))), assembler.head(targets.teacher.head)
    found: dict[Genome, Tensor] = {}
    if own:
        ends = final_hidden(assembler, own, targets, dtype, title)
        with progress(f"{title}, KL", total=len(own)) as advance:
            for genome, hidden in ends:
                found[genome] = targets.sequence_kls(hidden, head)
                advance("")
    everything = {genome: kls for share in ranks.all_gather(found) for genome, kls in share.items()}
    return [everything[genome] for genome in genomes]
