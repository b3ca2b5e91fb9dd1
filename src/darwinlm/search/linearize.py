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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax, nll_loss

from darwinlm.assemble import Assembler
from darwinlm.genome import Genome
from darwinlm.losses import chunk_tokens
from darwinlm.models.blocks import BlockStream
from darwinlm.models.head import Head
from darwinlm.models.stock import Block
from darwinlm.runtime import ranks
from darwinlm.runtime.progress import progress
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
                teacher = None if target is None else _log_softmax(dense_head, target[part])
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
                levels = {place: _Levels(self.assembler, place, self.genome[place], block) for place in places}
                for part in torch.arange(len(hidden)).split(self.batch):
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
        self, block: Block, hidden: Tensor, gradients: Tensor, levels: list[_Levels]
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


class _Levels:
    """The output matrix of one module at all its levels.

    Args:
        assembler: the levels.
        place: of the module in a genome.
        level: where it stands.
        block: that holds it.
    """

    def __init__(self, assembler: Assembler, place: int, level: int, block: Block) -> None:
        self.ladder, self.level = assembler.space.ladders[place], level
        self.linear: Any = block.output_matrix(self.ladder.kind)
        post_norm = block.family.site(self.ladder.kind).post_norm
        self.norm = block.layer.get_submodule(post_norm) if post_norm else None
        """What the outputs pass through on their way into the residual stream; changes are counted behind it."""
        _, self.bias = assembler.output_matrix(self.ladder)
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        for rung in range(self.ladder.present, self.ladder.top):
            weight, kept = assembler.output(self.ladder, rung)
            self.weights[rung] = (weight.to(self.linear.weight), kept.to(self.linear.weight.device))
        name = block.family.site(self.ladder.kind).module
        self.module = block.layer.get_submodule(name)
        self.fronts: dict[str, dict[str, Tensor]] = {self.ladder.format(level): {}}
        """Of each format the matrices in front of the output matrix, by their names within the module; none of the present one."""
        for format_ in self.ladder.formats:
            if format_ not in self.fronts:
                matrices = assembler.in_front(self.ladder, format_).items()
                self.fronts[format_] = {n.removeprefix(f"{name}."): t.to(self.linear.weight) for n, t in matrices}

    def watched(self, note: Callable[[Tensor | None, Tensor | None], None]) -> list[Any]:
        """Hooks that tell of the output matrix's inputs, and of what the module puts out."""
        fed = self.linear.register_forward_hook(lambda _, x, y: note(x[0], None if self.norm else y))  # type: ignore[arg-type]
        put_out: Callable[..., None] = lambda _, x, y: note(None, y)  # noqa: E731
        return [fed, self.norm.register_forward_hook(put_out)] if self.norm else [fed]

    def called(self) -> list[tuple[Any, Any]]:
        """Where the arguments of the module will be, once it was called; the list that comes back is filled once."""
        found: list[tuple[Any, Any]] = []

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            found.append((args, kwargs))
            hook.remove()

        hook = self.module.register_forward_pre_hook(note, with_kwargs=True)
        return found

    def in_formats(self, inputs: Tensor, called: list[tuple[Any, Any]]) -> dict[str, Tensor]:
        """(s, T, C) inputs of the output matrix as they are, and as they were if the module were in another format."""
        found = {format_: inputs for format_, changed in self.fronts.items() if not changed}
        fed: list[Tensor] = []
        hook = self.linear.register_forward_pre_hook(lambda _, x: fed.append(x[0]))
        for format_, changed in self.fronts.items():
            if changed:
                functional_call(self.module, changed, *called[0])
                found[format_] = fed[-1].detach()
        hook.remove()
        return found

    def moves(self, fed: dict[str, Tensor], gradient: Tensor) -> Tensor:
        """Inputs (s, T, C) by format and (s, T, R) gradient at the outputs -> (s, T, levels): gradient . (output at a level -
        output now)."""
        if self.norm is not None:
            return self._moves_behind(self.norm, fed, gradient)
        found = gradient.new_zeros(*gradient.shape[:2], self.ladder.top + 1)  # what is gone puts out nothing
        for number, (weight, kept) in self.weights.items():
            back, inputs = gradient.to(weight) @ weight, fed[self.ladder.format(number)]
            found[..., number] = (back * inputs.index_select(-1, kept)).sum(-1, dtype=torch.float32)
            if self.bias is not None:
                found[..., number] += gradient @ self.bias.to(gradient)
        return found - found[..., self.level, None]

    def _moves_behind(self, norm: nn.Module, fed: dict[str, Tensor], gradient: Tensor) -> Tensor:
        """The same behind a norm, which does not see how large its inputs are: each level's outputs go through it."""
        found = gradient.new_zeros(*gradient.shape[:2], self.ladder.top + 1)
        for number, (weight, kept) in self.weights.items():
            outputs = fed[self.ladder.format(number)].index_select(-1, kept).to(weight) @ weight.T
            outputs = norm(outputs if self.bias is None else outputs + self.bias.to(outputs))
            found[..., number] = (gradient.to(outputs) * outputs).sum(-1, dtype=torch.float32)
        return found - found[..., self.level, None]


def _log_softmax(head: Head, hidden: Tensor) -> Tensor:
    return log_softmax(head.logits(hidden.to(head.weight)), -1)


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
