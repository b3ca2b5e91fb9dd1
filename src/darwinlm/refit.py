"""Refit of a pruned model's output matrices on its own inputs, toward the residual stream of the dense model.

Levels are fitted to the dense model's activations, so no module knows what those before it got wrong. Here one pass goes
through the chosen model, block by block, attention first, then the MLP on what the new attention puts out. Only o_proj
and down_proj change, by a least-squares problem with a closed solution; nothing is trained.

Letters: S = sequences, T = tokens in a sequence, H = hidden size, C = columns of an output matrix.
X (C, tokens) are the matrix's inputs in the pruned model, E (H, tokens) is what the residual stream lacks behind it:

    W' = argmin |E - (W' - W) X|^2 + a |W' - W|^2 = W + E X^T (X X^T + a I)^-1        a = damping * mean(diag X X^T)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.database.hessians import output_matrix
from darwinlm.database.levels import MODULE_OF_KIND, OUTPUT_OF_KIND, Kind
from darwinlm.errors import CalibrationError, DamagedFileError
from darwinlm.models.blocks import BlockStream
from darwinlm.runtime import ranks
from darwinlm.runtime.files import read_json, read_tensors, sha256_of_file, write_json, write_tensors
from darwinlm.runtime.placement import Placement
from darwinlm.runtime.progress import progress

DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-4)
"""Tried for every matrix; the one with the least error on the checked sequences is taken."""
CHECKED = 8
"""Every so many-th sequence is not fitted to: it chooses the damping, and whether the matrix changes at all."""


class Moments:
    """What the least-squares problem of one matrix depends on: sums over tokens, in float64.

    Args:
        weight: (H, C).
    """

    def __init__(self, weight: Tensor) -> None:
        rows, columns = weight.shape
        place: dict[str, Any] = {
            "dtype": torch.float64,
            "device": "cpu" if weight.device.type == "mps" else weight.device,
        }
        self.inputs = torch.zeros(columns, columns, **place)
        """X X^T (C, C)."""
        self.cross = torch.zeros(rows, columns, **place)
        """E X^T (H, C)."""
        self.lack = torch.zeros((), **place)
        """|E|^2."""

    def add(self, inputs: Tensor, lack: Tensor) -> None:
        """Count the tokens of some sequences in: X (..., C) and E (..., H)."""
        x, e = inputs.flatten(0, -2).float(), lack.flatten(0, -2).float()
        for total, part in ((self.inputs, x.T @ x), (self.cross, e.T @ x), (self.lack, e.square().sum())):
            total += part.to(total.device)

    def sum_over_ranks(self) -> None:
        """Add up the sums of all ranks."""
        for total in (self.inputs, self.cross, self.lack):
            ranks.sum_over_ranks(total)

    def error(self, change: Tensor) -> float:
        """|E - change X|^2 for a change (H, C) of the matrix."""
        return (self.lack - (change * (2 * self.cross - change @ self.inputs)).sum()).item()


@dataclass(frozen=True)
class MatrixRefit:
    """How the refit of one output matrix ended."""

    damping: float | None
    """The one that was taken; None where the matrix stays as it was, since none lowered the error."""
    before: float
    """Mean over checked tokens of |E|^2, what the residual stream lacks behind the module."""
    after: float
    """The same with the matrix that is kept."""


def refit_matrix(weight: Tensor, moments: Moments, damping: float) -> Tensor:
    """W + E X^T (X X^T + damping * mean(diag X X^T) I)^-1 in float64.

    Args:
        weight: W (H, C). Columns of zeros, as padding has them, stay zero.
        moments: of the tokens that are fitted to.
        damping: positive: how dear it is to leave W.

    Raises:
        CalibrationError: the activations are not finite, or the damping is too small for them.
    """
    weight = weight.to(moments.cross)
    live = (weight != 0).any(0).nonzero().flatten()
    damped = moments.inputs[live][:, live]
    damped.diagonal().add_(damping * damped.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(damped)
    if info.item() or not torch.isfinite(factor).all():
        raise CalibrationError(
            "The calibration inputs hold NaN or Inf, are all zero or fewer than the matrix has columns. Run with --dtype "
            "float32, raise refit.tokens, or set it to 0 to leave the refit out."
        )
    change = torch.zeros_like(moments.cross)
    change[:, live] = torch.cholesky_solve(moments.cross[:, live].T, factor).T
    return weight + change


def best_matrix(
    weight: Tensor, fit: Moments, check: Moments, dtype: torch.dtype, dampings: Sequence[float] = DAMPINGS
) -> tuple[Tensor, float | None]:
    """The refit with the least error on tokens that it was not fitted to, rounded as stored; at worst the matrix as it was.

    Args:
        weight: (H, C).
        fit: of the tokens that are fitted to.
        check: of others, which choose.
        dtype: of a stored weight.
        dampings: to choose from.

    Returns:
        The matrix and its damping; None where it stays.
    """
    old = weight.to(check.cross)
    best = (check.error(torch.zeros_like(old)), None, weight.to(dtype))
    for damping in dampings if weight.any() else ():
        new = refit_matrix(weight, fit, damping).to(dtype)
        best = min(best, (check.error(new.double() - old), damping, new), key=lambda one: one[0])
    return best[2], best[1]


class Refits:
    """The refitted output matrices of one model on disk: a safetensors file a block, and a record of all.

    Args:
        folder: where they lie.
        identity: what they are made from; what lies there and is made from something else counts for nothing.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity, self._record = folder, identity, folder / "refit.json"
        stored = read_json(self._record) if self._record.exists() else {}
        same = stored.get("identity") == identity
        self.files: dict[str, str] = stored["files"] if same else {}
        self.matrices: dict[str, MatrixRefit] = (
            {name: MatrixRefit(**found) for name, found in stored["matrices"].items()} if same else {}
        )

    def __contains__(self, layer: int) -> bool:
        """Whether a block is finished and its file whole."""
        path = self.folder / _file(layer)
        return path.is_file() and self.files.get(path.name) == sha256_of_file(path)

    def write(self, layer: int, weights: dict[str, Tensor], found: dict[str, MatrixRefit]) -> None:
        """Keep a finished block: its output matrices by their names within the layer, and how each ended."""
        path = self.folder / _file(layer)
        write_tensors(path, weights)
        self.files[path.name] = sha256_of_file(path)
        self.matrices |= found
        matrices = {name: dataclasses.asdict(one) for name, one in self.matrices.items()}
        write_json(self._record, {"identity": self.identity, "files": self.files, "matrices": matrices})

    def finished(self, layers: int) -> bool:
        """Whether all of so many blocks are."""
        return all(layer in self for layer in range(layers))

    @property
    def at_the_end(self) -> tuple[float, float]:
        """Error behind the last module that there is, before and after its refit; the others are refitted in both."""
        *_, last = self.matrices.values() or [MatrixRefit(None, 0.0, 0.0)]
        return last.before, last.after

    def read(self, layer: int) -> dict[str, Tensor]:
        """The output matrices of a finished block by their names within the layer.

        Raises:
            DamagedFileError: the file is missing or altered.
        """
        if layer not in self:
            path = self.folder / _file(layer)
            raise DamagedFileError(f"'{path}' is missing or damaged. Run `darwinlm refit` to make it again.")
        return read_tensors(self.folder / _file(layer))[0]

    def put_into(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """(full name, tensor) of the model as it was, with the refitted matrices in their places."""
        layer, refitted = -1, {}
        for name, tensor in tensors:
            if name.startswith("model.layers.") and layer != (here := int(name.split(".")[2])):
                layer, refitted = here, self.read(here)
            yield name, refitted.get(name.removeprefix(f"model.layers.{layer}."), tensor)


def _file(layer: int) -> str:
    return f"layer-{layer}.safetensors"


def refit_blocks(
    refits: Refits,
    dense: BlockStream,
    pruned: Callable[[int], nn.Module],
    tokens: Tensor,
    batch: int,
    placement: Placement | None = None,
) -> None:
    """Complete the refits of a model, block by block; finished blocks are run but not fitted again.

    Args:
        refits: empty or begun; every finished block is on disk at once.
        dense: the model whose residual stream is the target.
        pruned: layer -> block of the model that is refitted; its embeddings are the dense ones.
        tokens: (S, T) calibration blocks, the same on all ranks, at least 2.
        batch: sequences in a forward pass.
        placement: where hidden states lie; by default in host memory.

    Raises:
        CalibrationError: the calibration does not determine a matrix; names it.
    """
    streams = _Streams(dense, tokens, batch, placement)
    with progress("Refit", total=len(dense)) as advance:
        for layer, block in enumerate(dense.blocks()):
            ours = pruned(layer)
            if ranks.told_by_first(layer in refits):
                dense.forward(block, streams.target, batch)
                for name, weight in refits.read(layer).items():
                    _put(ours, name, weight)
            else:
                weights, found = streams.refit(block, ours, layer)
                if ranks.is_first():
                    refits.write(layer, weights, found)
            dense.forward(ours, streams.hidden, batch)
            advance(f"layer {layer}")
    ranks.barrier()


class _Streams:
    """This rank's sequences as both models see them: those that are fitted to first, then the checked ones."""

    def __init__(self, dense: BlockStream, tokens: Tensor, batch: int, placement: Placement | None) -> None:
        every, own = min(CHECKED, len(tokens)), ranks.mine(list(range(len(tokens))))
        order = sorted(own, key=lambda index: (index + 1) % every == 0)
        fitted = sum((index + 1) % every != 0 for index in own)
        edges = [*range(0, fitted, batch), *range(fitted, len(order), batch), len(order)]
        self.parts = [(slice(begin, end), begin >= fitted) for begin, end in pairwise(edges)]
        self.checked = len(tokens) // every * tokens.shape[1]
        self.target, self.hidden = (dense.embed(tokens[order], placement) for _ in range(2))
        self.dense, self.batch = dense, batch

    def refit(self, block: nn.Module, ours: nn.Module, layer: int) -> tuple[dict[str, Tensor], dict[str, MatrixRefit]]:
        """Refit a block in place; on the way the outputs of the dense one replace `target`.

        Returns:
            The output matrices as they are stored, and how each ended.
        """
        kinds: list[Kind] = [kind for kind in MODULE_OF_KIND if _has(ours, kind)]
        if "attention" not in kinds:
            self.dense.forward(block, self.target, self.batch)
        weights: dict[str, Tensor] = {}
        found: dict[str, MatrixRefit] = {}
        for kind in kinds:
            name, matrix = f"{MODULE_OF_KIND[kind]}.{OUTPUT_OF_KIND[kind]}.weight", output_matrix(ours, kind)
            fit, check = self._moments(block, ours, kind)
            try:
                chosen = [self._chosen(matrix.weight, fit, check)] if ranks.is_first() else []
                weight, one = ranks.told_by_first(chosen)[0]
            except CalibrationError as fault:
                raise CalibrationError(f"model.layers.{layer}.{name}: {fault}") from fault
            weights[name], found[f"model.layers.{layer}.{name}"] = weight, one
            _put(ours, name, weight)
        return weights, found

    def _chosen(self, weight: Tensor, fit: Moments, check: Moments) -> tuple[Tensor, MatrixRefit]:
        new, damping = best_matrix(weight, fit, check, self.dense.source.dtype)
        before, after = (
            check.error(one.to(check.cross) - weight.to(check.cross)) / self.checked for one in (weight, new)
        )
        return new.cpu(), MatrixRefit(damping, before, after)

    @torch.no_grad()
    def _moments(self, block: nn.Module, ours: nn.Module, kind: Kind) -> tuple[Moments, Moments]:
        """Of the sequences that are fitted to and of the checked ones."""
        fit, check = Moments(output_matrix(ours, kind).weight), Moments(output_matrix(ours, kind).weight)
        for part, checks in self.parts:
            target = self.target[part].to(self.dense.device)
            if kind == "attention":  # the first to come runs the dense block
                _, target, self.target[part] = _run(block, target, kind)
            inputs, *reached = _run(ours, self.hidden[part].to(self.dense.device), kind)
            (check if checks else fit).add(inputs, target.float() - reached[kind == "mlp"].float())
        fit.sum_over_ranks()
        check.sum_over_ranks()
        return fit, check


def _run(block: nn.Module, hidden: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """A block's run: the inputs of one output matrix, the residual stream behind it where it is attention's, and at the end."""
    seen: list[Any] = []
    hook = output_matrix(block, kind).register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    try:
        end = block(inputs_embeds=hidden, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    inputs, output = seen
    return inputs, hidden + output, end


def _has(block: nn.Module, kind: Kind) -> bool:
    return hasattr(block.get_submodule(f"layers.0.{MODULE_OF_KIND[kind]}"), OUTPUT_OF_KIND[kind])


def _put(block: nn.Module, name: str, weight: Tensor) -> None:
    """Give a block another matrix; `name` is the one within the layer. The old one may be shared and stays as it is."""
    old = block.get_parameter(f"layers.0.{name}")
    new = nn.Parameter(weight.to(old), requires_grad=False)
    block.get_submodule(f"layers.0.{name.removesuffix('.weight')}").register_parameter("weight", new)
