"""What every level of every module costs where a genome stands, from one forward and one backward pass.

Where module m puts out y_t at token t, another level of it would put out y_t + delta_t. To second order the KL to the dense
model rises by

    E_t[grad KL . delta] + 1/2 E[(g . delta)^2],

with g the gradient of the log-probability of a label that is sampled from the model itself: its second moment is the Fisher
information, which is the curvature of the KL (Amari 1998; Martens, arXiv 1412.1193). Blocks stream through the device twice:
forward, leaving their inputs, and back, each made again and differentiated alone. So device memory holds one block. Where
modules can be in several formats, each runs once more in every other one, so that delta is what it really puts out there.

Letters: S = sequences, T = tokens in a sequence, H = hidden size, M = modules, V = vocabulary.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from darwinlm.assemble import Assembler
from darwinlm.genome import Genome
from darwinlm.losses import chunk_tokens
from darwinlm.models.blocks import BlockStream
from darwinlm.models.head import Head
from darwinlm.models.stock import Block
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import progress
from darwinlm.search.module_levels import ModuleLevels
from darwinlm.search.propose import FORBIDDEN

DOUBT = 0.5
"""Standard deviation of a cost that is only linearized, as a part of its first and second order."""


@dataclass(frozen=True)
class Linearization:
    """What levels add to the KL of a genome, in nats per token; `FORBIDDEN` at closed ones, 0 at its own."""

    costs: list[list[float]]
    """(M, levels)."""
    doubts: list[list[float]]
    """(M, levels): standard deviations, of what sequences differ in and of what the second order leaves out."""


@torch.no_grad()
def linearize(
    assembler: Assembler,
    stream: BlockStream,
    genome: Genome,
    tokens: Tensor,
    generator: torch.Generator,
    *,
    dense: Tensor | None = None,
    batch: int = 8,
) -> Linearization:
    """What every open level of every module adds to the KL of a genome; the ranks share the sequences out.

    Args:
        assembler: the levels.
        stream: the model that is pruned.
        genome: where the modules stand.
        tokens: (S, T) ids; many short sequences tell more than few long ones.
        generator: of the labels, on the CPU.
        dense: (S, T, H) the inputs of the head in the dense model; None where the genome is the dense model itself.
        batch: sequences in a pass.
    """
    moves = level_moves(assembler, stream, genome, tokens, generator, dense=dense, batch=batch)
    costs, doubts = [], []
    for ladder, level, move in zip(assembler.space.ladders, genome, moves, strict=True):
        first, _, curved = move.unbind(1)  # tokens alone: together they are less biased, and far noisier
        mean = (first + curved).mean(0)
        spread = (first + curved).var(0, correction=min(1, len(move) - 1)) / len(move)
        doubt = (spread + (DOUBT * (first.mean(0).abs() + curved.mean(0))).square()).sqrt()
        mean[level] = doubt[level] = 0.0
        closed = [FORBIDDEN] * ladder.present
        costs.append(closed + mean.tolist()[ladder.present :])
        doubts.append(closed + doubt.tolist()[ladder.present :])
    return Linearization(costs, doubts)


@torch.no_grad()
def level_moves(
    assembler: Assembler,
    stream: BlockStream,
    genome: Genome,
    tokens: Tensor,
    generator: torch.Generator,
    *,
    dense: Tensor | None = None,
    batch: int = 8,
) -> list[Tensor]:
    """Of every module (S, 3, levels): what a level adds to the KL of each sequence per token, in nats.

    First order; curvature where all tokens of the sequence move together; curvature where each moves alone. Arguments as
    of `linearize`.
    """
    seeds = torch.randint(1 << 62, (len(tokens),), generator=generator)
    share, world = ranks.rank(), ranks.world_size()
    walk, own = _Walk(assembler, stream, genome, batch), slice(share, None, world)
    moves = walk.back(walk.forward(tokens[own], seeds[own], None if dense is None else dense[own]))
    place = torch.cat([torch.arange(len(tokens))[rank::world] for rank in range(world)]).argsort()
    return [torch.cat(parts)[place] for parts in zip(*ranks.all_gather(moves))]


class _Walk:
    """One forward and one backward pass of a genome's model, block by block."""

    def __init__(self, assembler: Assembler, stream: BlockStream, genome: Genome, batch: int) -> None:
        self.assembler, self.stream, self.genome, self.batch = assembler, stream, genome, batch
        self.inputs: list[Tensor] = []

    def forward(self, tokens: Tensor, seeds: Tensor, dense: Tensor | None) -> Tensor:
        """Gradients of the loss (2, S, T, H) at the last block's outputs: of the KL, and of sampled labels' NLL."""
        hidden = BlockStream(self.assembler.embedded, self.stream.device, self.stream.dtype).embed(tokens)
        with progress("Linearization, forward", total=len(self.stream)) as advance:
            for layer in range(len(self.stream)):
                self.inputs.append(hidden.clone())
                self.stream.forward(self._block(layer), hidden, self.batch)
                advance(f"layer {layer}")
        device = self.stream.device
        dense_head = self.stream.source.head().to(device, torch.float32)
        head, norm = self.assembler.head(dense_head), self.stream.norm()
        found = torch.zeros(2, *hidden.shape)
        for s, seed in enumerate(seeds.tolist()):
            target = None if dense is None else dense[s].to(device)
            generator = torch.Generator().manual_seed(seed)
            for part in torch.arange(hidden.shape[1]).split(chunk_tokens(head.vocabulary, device)):
                logits = None if target is None else dense_head.logits(target[part].to(dense_head.weight))
                teacher = None if logits is None else log_softmax(logits, -1)
                draws = torch.rand(len(part), 1, generator=generator).to(device)
                for k, grad in enumerate(_head_gradients(hidden[s, part].to(device), norm, head, teacher, draws)):
                    found[k, s, part] = grad.cpu()
        return found

    def back(self, gradients: Tensor) -> list[Tensor]:
        """`level_moves` of these sequences, from `forward`'s gradients."""
        ladders, tokens = self.assembler.space.ladders, gradients.shape[2]
        found = [torch.zeros(gradients.shape[1], 3, ladder.top + 1, dtype=torch.float64) for ladder in ladders]
        with progress("Linearization", total=len(self.inputs)) as advance:
            for layer in reversed(range(len(self.inputs))):
                block, hidden = self._block(layer).requires_grad_(False), self.inputs.pop()
                places = [i for i, l in enumerate(ladders) if l.layer == layer and l.columns]
                levels = {place: ModuleLevels(self.assembler, place, self.genome[place], block) for place in places}
                for part in (
                    torch.arange(len(hidden)).split(self.batch) if len(hidden) else ()
                ):  # a rank may have no sequence
                    first, curved, gradients[:, part] = self._differentiated(
                        block, hidden[part], gradients[:, part], list(levels.values())
                    )
                    for place, d, g in zip(places, first, curved):
                        sums = (d.sum(1), 0.5 * g.sum(1).square(), 0.5 * g.square().sum(1))
                        found[place][part] = torch.stack(sums, 1).double().cpu() / tokens
                advance(f"layer {layer}")
        return found

    def _block(self, layer: int) -> Block:
        return self.assembler.masked_block(self.genome, layer, self.stream.device, self.stream.dtype)

    def _differentiated(
        self, block: Block, hidden: Tensor, gradients: Tensor, levels: list[ModuleLevels]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Moves of the KL and of the log-probability (s, T, levels) by module, and gradients (2, s, T, H) at the block's inputs."""
        passes: list[tuple[Tensor, ...]] = []
        went_in: dict[int, Tensor] = {}
        came_out: dict[int, Tensor] = {}
        called: list[Any] = [module.called() for module in levels]

        def note(place: int, inputs: Tensor | None, output: Tensor | None) -> None:
            if inputs is not None:
                went_in[place] = inputs.detach()
            if output is not None:
                came_out[place] = output

        hooks = [hook for place, module in enumerate(levels) for hook in module.watched(functools.partial(note, place))]
        with torch.enable_grad():
            inputs = hidden.to(self.stream.device).requires_grad_()
            outputs = block(inputs)
            sources = [inputs, *(came_out[place] for place in range(len(levels)))]
            for order, gradient in enumerate(gradients):
                passes.append(torch.autograd.grad(outputs, sources, gradient.to(outputs), retain_graph=order == 0))
        for hook in hooks:
            hook.remove()
        fed = [module.in_formats(went_in[place], called[place]) for place, module in enumerate(levels)]
        first, curved = (
            [module.moves(fed[place], grads[1 + place].float()) for place, module in enumerate(levels)]
            for grads in passes
        )
        return first, curved, torch.stack([grads[0].float().cpu() for grads in passes])


def _head_gradients(
    hidden: Tensor, norm: nn.Module, head: Head, teacher: Tensor | None, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (N, H) of the KL to a teacher's log-probabilities (N, V), and of sampled labels' NLL, at (N, H) outputs.

    The labels are drawn where uniform `draws` (N, 1) cut the cumulative distribution.
    """
    with torch.enable_grad():
        inputs = hidden.detach().requires_grad_()
        log_q = log_softmax(head.logits(norm(inputs).to(head.weight)), -1)
        cumulative = log_q.detach().double().exp().cumsum(-1)
        labels = torch.searchsorted(cumulative, draws.double() * cumulative[:, -1:])[:, 0].clamp_max(log_q.shape[1] - 1)
        (curved,) = torch.autograd.grad(
            nll_loss(log_q, labels, reduction="sum"), inputs, retain_graph=teacher is not None
        )
        if teacher is None:
            return torch.zeros_like(curved), curved
        (first,) = torch.autograd.grad(-(teacher.exp() * log_q).sum(), inputs)
        return first, curved
