"""KL of candidates as they are, without training: cheap, since most of a candidate is what it was before.

A candidate that differs from a reference genome from some layer on begins at the reference's inputs of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from darwinlm.assemble import Assembler
from darwinlm.genome import Genome
from darwinlm.models.heterogeneous import final_norm
from darwinlm.runtime.cache import ByteCache
from darwinlm.search.fitness import Targets

CACHE_BYTES = 1 << 30
"""Memory for the layers of candidates that were made before."""


class Screen:
    """Scores untrained candidates on fixed blocks.

    Args:
        assembler: gives their layers.
        targets: the dense model on these blocks.
        dtype: arithmetic of the forward passes.
        cache_bytes: memory of the device for layers that were made before.
        score: of final hidden states, for each batch, and a head; by default the KL to `targets`.
    """

    def __init__(
        self,
        assembler: Assembler,
        targets: Targets,
        dtype: torch.dtype,
        cache_bytes: int = CACHE_BYTES,
        score: Callable[[Iterable[Tensor], Tensor], float] | None = None,
    ) -> None:
        self.assembler, self.targets, self.dtype = assembler, targets, dtype
        self.head, source = targets.teacher.head, assembler.source
        self.score = score or targets.kl
        self.device = self.head.device
        self.evaluations = 0
        table = source.embedding()
        weight = source.tensors(["model.norm.weight"])["model.norm.weight"].to(self.device, dtype)
        self._norm = final_norm(source.family, source.config, weight)
        self._blocks: ByteCache[nn.Module] = ByteCache(cache_bytes, _bytes_of)
        self._layers = [
            [i for i, l in enumerate(assembler.space.ladders) if l.layer == layer] for layer in self._depth()
        ]
        self._reference: Genome | None = None
        self._inputs = [[table[ids.cpu()].to(self.device, dtype) for ids in targets.tokens()]]
        """Inputs of every layer of the reference and of the final norm, each a list of (blocks, T, H) batches."""

    @torch.no_grad()
    def refer(self, genome: Genome) -> float:
        """The score of a genome, whose activations then serve those that differ from it late."""
        start = self._first_difference(genome)
        inputs = self._inputs[: start + 1]
        for layer in self._depth()[start:]:
            inputs.append(self._through(genome, layer, inputs[-1]))
        self._reference, self._inputs = genome, inputs
        return self._scored(inputs[-1])

    @torch.no_grad()
    def __call__(self, genome: Genome) -> float:
        """The score of a genome: by default the mean KL(dense || candidate) per token, in nats."""
        start = self._first_difference(genome)
        hidden = self._inputs[start]
        for layer in self._depth()[start:]:
            hidden = self._through(genome, layer, hidden)
        return self._scored(hidden)

    def _depth(self) -> range:
        return range(len(self.assembler.source.shape.layers))

    def _first_difference(self, genome: Genome) -> int:
        """The first layer in which a genome differs from the reference; one past the last where it does not."""
        old = self._reference
        differs = [old is None or any(genome[i] != old[i] for i in places) for places in self._layers]
        return differs.index(True) if True in differs else len(differs)

    def _through(self, genome: Genome, layer: int, hidden: list[Tensor]) -> list[Tensor]:
        key = (layer, *(genome[i] for i in self._layers[layer]))
        block = self._blocks.get(key, lambda: self.assembler.block(genome, layer, self.device, self.dtype))
        return [block(inputs_embeds=part, use_cache=False).last_hidden_state for part in hidden]

    def _scored(self, hidden: list[Tensor]) -> float:
        self.evaluations += 1
        return self.score(map(self._norm, hidden), self.head)


def _bytes_of(block: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in block.parameters())
