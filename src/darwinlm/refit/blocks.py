"""Refit of a pruned model, block by block, on its own inputs, toward the residual stream of the dense model.

Levels are fitted to the dense model's activations, so no module knows what those before it got wrong. Here one pass goes
through the chosen model, attention first, then the MLP on what the new attention puts out. Nothing is trained.

Letters: S = sequences, T = tokens in a sequence, H = hidden size, C = columns of an output matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.errors import CalibrationError
from darwinlm.models.blocks import BlockStream
from darwinlm.models.shrink import shrink_mlp
from darwinlm.models.sites import Kind, layer_prefix
from darwinlm.models.stock import Block
from darwinlm.models.widths import LayerWidths
from darwinlm.refit.least_squares import DAMPINGS, Moments, best_matrix, choose_again, clipped, shared
from darwinlm.refit.rounding import InFormat, fronts_anew, refit_anew
from darwinlm.refit.store import MatrixRefit, Refits
from darwinlm.runtime import ranks
from darwinlm.runtime.placement import Placement
from darwinlm.runtime.progress import progress

ROUNDS = 2
"""Refits of a mixture's experts, one after the other: each gives every expert what the others have left."""
CHECKED = 8
"""Every so many-th sequence is not fitted to: it chooses the damping, and whether the matrix changes at all."""


def refit_blocks(
    refits: Refits,
    dense: BlockStream,
    pruned: BlockStream,
    kept: Callable[[int], Tensor] | None,
    tokens: Tensor,
    batch: int,
    placement: Placement | None = None,
    in_format: InFormat | None = None,
) -> None:
    """Complete the refits of a model, block by block; finished blocks are run but not fitted again.

    Args:
        refits: empty or begun; every finished block is on disk at once.
        dense: the model whose residual stream is the target.
        pruned: the model that is refitted.
        kept: layer -> the dense MLP's columns (k,) that the pruned one has, where they may be chosen again, by what is fed to
            the pruned model; None leaves the choice as it is.
        tokens: (S, T) calibration blocks, the same on all ranks, at least 2.
        batch: sequences in a forward pass.
        placement: where hidden states lie; by default in host memory.
        in_format: layer and kind of a module -> the type of ggml that it is stored in, and its matrices as they were before
            that. They are rounded anew, by what the pruned model feeds them, and the output matrix keeps its columns.

    Raises:
        CalibrationError: the calibration does not determine a matrix; names it.
    """
    streams = _Streams(dense, pruned, tokens, batch, placement, in_format)
    with progress("Refit", total=len(dense)) as advance:
        for layer, block in enumerate(dense.blocks()):
            ours = pruned.block(layer)
            if ranks.broadcast(layer in refits):
                dense.forward(block, streams.target, batch)
                put(ours, refits.read(layer))
            else:
                weights, found = streams.refit(block, ours, layer, kept)
                refits.write(layer, weights, found)
            dense.forward(ours, streams.hidden, batch)
            advance(f"layer {layer}")
    ranks.barrier()


class _Streams:
    """This rank's sequences as both models see them: those that are fitted to first, then the checked ones."""

    def __init__(
        self,
        dense: BlockStream,
        pruned: BlockStream,
        tokens: Tensor,
        batch: int,
        placement: Placement | None,
        in_format: InFormat | None,
    ) -> None:
        every, own = min(CHECKED, len(tokens)), ranks.shard(list(range(len(tokens))))
        order = sorted(own, key=lambda index: (index + 1) % every == 0)
        fitted = sum((index + 1) % every != 0 for index in own)
        edges = [*range(0, fitted, batch), *range(fitted, len(order), batch), len(order)]
        self.parts = [(slice(begin, end), begin >= fitted) for begin, end in pairwise(edges)]
        self.checked = len(tokens) // every * tokens.shape[1]
        self.target, self.hidden = (stream.embed(tokens[order], placement) for stream in (dense, pruned))
        self.in_format = in_format
        self.dense, self.pruned, self.batch = dense, pruned, batch
        self.branch = dense.source.family.branch(dense.source.config)

    @torch.no_grad()
    def refit(
        self, block: Block, ours: Block, layer: int, kept: Callable[[int], Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, MatrixRefit]]:
        """Refit a block in place; on the way the outputs of the dense one replace `target`.

        Returns:
            What changes as it is stored, by its name within the layer, and how each output matrix ended.
        """
        if ours.kinds in ([], ["mlp"]) and not (ours.kinds and ours.family.site("mlp").post_norm):
            self.dense.forward(block, self.target, self.batch)
        weights: dict[str, Tensor] = {}
        found: dict[str, MatrixRefit] = {}
        for kind in ours.kinds:
            name = f"{ours.family.site(kind).output}.weight"
            format_, before = self.in_format(layer, kind) if self.in_format else ("", {})
            mixture = ours.parts(kind) > 1
            rounds = ROUNDS if mixture and ours.family.site(kind).post_norm is None else 1
            columns = kept(layer) if kind == "mlp" and kept and not format_ and not mixture else None
            rounding = (format_, before[name]) if format_ else None
            try:
                if format_:
                    fitted = (self.hidden[part] for part, checks in self.parts if not checks)
                    fronts = {n: t for n, t in before.items() if n != name}
                    changed = fronts_anew(ours, kind, fronts, format_, fitted, self.dense.device)
                    weights |= put(ours, changed)
                for _ in range(rounds):
                    stays = ours.output_matrix(kind).weight
                    if mixture or format_:  # what does not change stays as it is stored
                        stays = weights[name] if name in weights else self.pruned.weights(layer)[name]
                    changed, ended = self._changed(block, ours, layer, kind, columns, rounding, stays)
                    first = found.setdefault(layer_prefix(layer) + name, ended)
                    found[layer_prefix(layer) + name] = replace(ended, before=first.before)
                    weights |= put(ours, changed)
            except CalibrationError as fault:
                raise CalibrationError(f"{layer_prefix(layer)}{name}: {fault}") from fault
        return weights, found

    def _changed(
        self,
        block: Block,
        ours: Block,
        layer: int,
        kind: Kind,
        columns: Tensor | None,
        rounding: tuple[str, Tensor] | None,
        stays: Tensor,
    ) -> tuple[dict[str, Tensor], MatrixRefit]:
        """The refit of one module, as the first rank finds it; `stays` is its output matrix, of a mixture or in a format
        as it is stored."""
        weight, dense = ours.output_matrix(kind).weight, block.output_matrix(kind).weight
        change = None
        site = ours.family.site(kind)
        module, name = site.module, f"{site.output}.weight"
        own = ours.layer.get_submodule(module)
        if columns is not None and len(columns) < dense.shape[1]:
            change = _change(dense, weight, columns)  # sums for all columns hold those for any choice of them
            ours.layer.set_submodule(module, block.layer.get_submodule(module))
        sums = self._moments(block, ours, kind, change)
        ours.layer.set_submodule(module, own)
        if not ranks.is_first():
            return ranks.broadcast(({}, MatrixRefit(None, 0.0, 0.0)))
        if columns is None or change is None:
            return ranks.broadcast(self._refitted(weight, sums, layer, name, rounding, stays))
        fit, check = sums
        return ranks.broadcast(self._chosen_again(block, weight, columns, (fit[0], check[0]), layer, name))

    def _refitted(
        self,
        weight: Tensor,
        sums: tuple[list[Moments], list[Moments]],
        layer: int,
        name: str,
        rounding: tuple[str, Tensor] | None,
        stays: Tensor,
    ) -> tuple[dict[str, Tensor], MatrixRefit]:
        """A matrix with the columns that it has, part by part, where some part changes; of several dampings the largest is told."""
        stored, parts = self._stored(layer, name), len(sums[0])
        found, dampings, before, after = [], [], 0.0, 0.0
        for part, same, fit, check in zip(weight.chunk(parts, 1), stays.chunk(parts, 1), *sums, strict=True):
            if rounding:
                new, damping = refit_anew(part, fit, check, *rounding)
            else:
                new, damping = best_matrix(part, fit, check, stored)
            before += self._error(check, torch.zeros_like(part))
            after += self._error(check, new.to(part) - part)
            found.append(same if damping is None else new.cpu())
            dampings += [] if damping is None else [damping]
        changed = {name: torch.cat(found, 1)} if dampings or rounding else {}
        return changed, MatrixRefit(max(dampings, default=None), before, after)

    def _chosen_again(
        self, block: Block, weight: Tensor, columns: Tensor, sums: tuple[Moments, Moments], layer: int, name: str
    ) -> tuple[dict[str, Tensor], MatrixRefit]:
        """An MLP with the columns that it has, or with others where that has less error on the checked sequences."""
        dense = block.output_matrix("mlp").weight
        columns = columns.to(dense.device)
        old, stored = _change(dense, weight, columns), self._stored(layer, name)
        if not sums[0].inputs.any():  # this text does not reach it
            error = self._error(sums[1], old)
            return {}, MatrixRefit(None, error, error)
        fit, check = (one.behind(old, columns) for one in sums)
        new, damping = best_matrix(weight, fit, check, stored)
        del fit, check  # as large as what the next step works on
        others, theirs = choose_again(dense, sums[0], len(columns), damping or DAMPINGS[0], stored)
        before, own, again = (
            self._error(sums[1], one) for one in (old, _change(dense, new, columns), _change(dense, theirs, others))
        )
        if own <= again:
            return {} if damping is None else {name: new.cpu()}, MatrixRefit(damping, before, own)
        site, whole = block.family.site("mlp"), self.dense.source.layer(layer)
        there = {n: whole[n] for n, _ in block.layer.named_parameters() if n.startswith(f"{site.module}.")}
        shrunk = shrink_mlp(site, there, LayerWidths(0, 0, dense.shape[1]), others.cpu(), theirs.cpu())
        exchanged = len(columns) - int(torch.isin(others, columns.cpu()).sum())
        return shrunk, MatrixRefit(damping or DAMPINGS[0], before, again, exchanged)

    def _stored(self, layer: int, name: str) -> Callable[[Tensor], Tensor]:
        """What is left of a matrix where it is stored."""
        dtype = self.dense.source.dtype_of(layer_prefix(layer) + name)
        return lambda matrix: matrix.to(dtype)

    def _error(self, check: Moments, change: Tensor) -> float:
        return check.error(change.to(check.cross)) / self.checked

    def _moments(
        self, block: Block, ours: Block, kind: Kind, change: Tensor | None
    ) -> tuple[list[Moments], list[Moments]]:
        """Of the sequences that are fitted to and of the checked ones, for each part of the matrix that is refitted apart.

        Args:
            change: what the matrix of the pruned model is beyond the one in `ours` (H, C); its lack says which tokens are outlying.
        """
        weight, parts = ours.output_matrix(kind).weight, ours.parts(kind)
        fit, check = ([Moments(one) for one in weight.chunk(parts, 1)] for _ in range(2))
        for part, checks in self.parts:
            lacks, inputs = self._lacks(block, ours, kind, part)
            given = 0.0 if change is None else inputs.float() @ change.float().T
            lacks = clipped(lacks - given) + given
            for one, own in zip(check if checks else fit, shared(inputs, lacks, parts), strict=True):
                one.add(*own)
        for one in (*fit, *check):
            one.all_reduce()
        return fit, check

    def _lacks(self, block: Block, ours: Block, kind: Kind, part: slice) -> tuple[Tensor, Tensor]:
        """What the output matrix should put out more than it does, and its inputs.

        That brings the residual stream to the dense one's; where the output passes through a norm, whose size it cannot
        change, the output itself. After the last module the outputs of the dense block are in `target`.
        """
        target, behind_norm = self.target[part].to(self.dense.device), ours.family.site(kind).post_norm is not None
        dense_end = target
        if behind_norm or kind == "attention":
            _, dense_output, dense_end = _run(block, target, kind)
            target = dense_output if behind_norm else target + self.branch * dense_output
        if kind == ours.kinds[-1] or not behind_norm:
            self.target[part] = dense_end
        hidden = self.hidden[part].to(self.dense.device)
        inputs, output, end = _run(ours, hidden, kind)
        if behind_norm:
            return target.float() - output.float(), inputs
        reached = hidden + self.branch * output if kind == "attention" else end
        return (target.float() - reached.float()) / self.branch, inputs


def _run(block: Block, hidden: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """A block's run: the inputs of one output matrix, its outputs, and the block's."""
    seen: list[Any] = []
    with block.output_matrix(kind).register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output))):
        end = block(hidden)
    return seen[0], seen[1], end


def _change(dense: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
    """(H, C), float64: what a matrix of some `columns` is beyond the dense one, whose other columns it lacks."""
    change = -dense.double()
    return change.index_add_(1, columns.to(dense.device), matrix.to(change))


def put(block: Block, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a block other matrices, by their names within the layer; gives them back. The old ones may be shared and stay as they
    are."""
    for name, weight in weights.items():
        new = nn.Parameter(weight.to(block.layer.get_parameter(name)), requires_grad=False)
        module, _, parameter = name.rpartition(".")
        block.layer.get_submodule(module).register_parameter(parameter, new)
    return weights
