"""Floating-point operations of building a database and of searching on it, from shapes; a product and a sum are two.

Matrix products are counted, nothing else: neither the latency of small operations nor reading and writing.
Letters: T = tokens, R = hidden size, C = columns of an output matrix, k = columns that a level keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from darwinlm.config import SearchConfig
from darwinlm.cost import forward_flops
from darwinlm.database.levels import Ladder
from darwinlm.models.shape import ModelShape
from darwinlm.refit.judge import DEPTHS, JUDGED_TOKENS
from darwinlm.refit.least_squares import DAMPINGS

ROUNDS, GENOMES = 3, 6
"""Of the start, as most models that we measured took."""
COLUMN_SECONDS = 1e-4
"""That rounding one column takes on a GPU beside its products: some fifteen small operations. An estimate, never measured."""
OPTIMIZER_BYTES = 110
"""That a step of the compensated AdamW reads and writes for each parameter, operation by operation."""


def hessian_flops(shape: ModelShape, ladders: Sequence[Ladder], tokens: int) -> int:
    """Second moments in float32: T C^2 for each module, since one triangle is enough; of experts for those that a token
    passes through."""
    each = [(ladder.columns // _parts(ladder), shape.chosen if ladder.rungs else 1) for ladder in ladders]
    return sum(tokens * columns**2 * chosen for columns, chosen in each)


def _parts(ladder: Ladder) -> int:
    """Of a module that are pruned apart: experts."""
    return max(ladder.rungs[0][0], 1) if ladder.rungs else 1


def pruning_flops(ladder: Ladder, hidden: int) -> int:
    """One module's levels in float32.

    Inverse and two factorizations (5/3 C^3), K and P while columns leave (2 C^3), W^T W and W L (2 R C^2), and one
    substitution of R k^2 for each level.
    """
    parts = _parts(ladder)
    columns = ladder.columns // parts
    kept = [columns - count * ladder.group_size // parts for count in ladder.open_counts]
    return parts * (11 * columns**3 // 3 + 2 * hidden * columns**2 + sum(hidden * k**2 for k in kept))


def pruning_seconds(ladders: Sequence[Ladder], hidden: int, devices: int, rate: float) -> float:
    """All modules: those of a block are shared out to the devices, the blocks come one after another."""
    blocks: dict[int, list[int]] = {}
    for ladder in ladders:
        blocks.setdefault(ladder.layer, []).append(pruning_flops(ladder, hidden))
    return sum(max(sum(own[rank::devices]) for rank in range(min(devices, len(own)))) for own in blocks.values()) / rate


def rounding_flops(ladder: Ladder, hidden: int, formats: int) -> int:
    """One module's levels in so many formats, in float64: of each level factor, inverse and its factor (4/3 k^3), and in each
    format what later columns make up for (R k^2); the same of the matrices in front, which have about 2 C rows."""
    kept = _kept(ladder)
    inverses = 4 * sum(k**3 for k in (*kept, *[hidden] * (1 + (ladder.kind == "attention")))) // 3
    return inverses + formats * (2 * ladder.columns * hidden**2 + sum(hidden * k**2 for k in kept))


def rounding_seconds(ladders: Sequence[Ladder], hidden: int, formats: int, devices: int) -> float:
    """Of the small operations of rounding on a GPU, one column after the other; a block's modules and formats are shared out."""
    columns = formats * sum(hidden + sum(_kept(ladder)) for ladder in ladders if ladder.columns)
    return columns * COLUMN_SECONDS / min(devices, 2 * formats)


def _kept(ladder: Ladder) -> list[int]:
    """Columns of every level that is not gone."""
    return [ladder.columns - count * ladder.group_size for count in ladder.open_counts[:-1]] if ladder.columns else []


@dataclass(frozen=True)
class Passes:
    """What a piece of work does, in all."""

    bfloat16: float = 0.0
    """Operations."""
    float32: float = 0.0
    """Operations: KL from the logits on, moments, solutions."""
    uploaded: float = 0.0
    """Bytes from the host to the device."""
    moved: float = 0.0
    """Bytes within the device's memory that are no products."""

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __mul__(self, times: float) -> Passes:
        return Passes(*(times * each for each in astuple(self)))


def rounding_passes(shape: ModelShape, ladders: Sequence[Ladder], tokens: int, formats: int, length: int) -> Passes:
    """Of rounding all levels to so many formats: the dense model once, moments of what its matrices are fed, and the rounding.

    Args:
        shape: of the dense model.
        ladders: of its modules.
        tokens: of calibration.
        formats: how many.
        length: of a sequence.
    """
    fronts = len(ladders) + sum(ladder.kind == "attention" for ladder in ladders)  # values have their own
    moments = hessian_flops(shape, ladders, tokens) + fronts * tokens * shape.hidden**2
    rounded = sum(rounding_flops(ladder, shape.hidden, formats) for ladder in ladders if ladder.columns)
    return Passes(tokens * forward_flops(shape, length, head=False), moments + 2 * rounded)


def start_passes(
    dense: ModelShape, pruned: ModelShape, modules: Sequence[Ladder], config: SearchConfig, value: int, formats: int = 0
) -> Passes:
    """Of the linearized start, where `ROUNDS` rounds score `GENOMES` genomes each.

    A linearization is a forward pass, the same again, and two backward passes without gradients of weights, at the dense
    widths, and in each other format a forward pass; for each of both gradients a product with every level of every output
    matrix, in every format; and the heads of the dense model and this one with two backward passes. Scores are forward
    passes of the candidates, layer by layer.

    Args:
        dense: the model that is pruned.
        pruned: at the target.
        modules: the ladders.
        config: of the search.
        value: bytes of a stored weight.
        formats: that modules may have beside the checkpoint's own.
    """
    tokens, length = config.start_tokens, config.sequence_tokens or config.start_tokens
    kept = (1 + formats) * sum(
        ladder.columns - count * ladder.group_size for ladder in modules for count in (0, *ladder.between)
    )
    head = 2 * dense.vocabulary * dense.hidden
    once = (4 + formats) * forward_flops(dense, length, head=False) + 4 * dense.hidden * kept
    scored = GENOMES * forward_flops(pruned, length, head=False)
    levels = dense.hidden * kept * value
    weights = (2 * dense.layer_parameters + GENOMES * pruned.layer_parameters) * value + levels
    return Passes(ROUNDS * tokens * (once + scored), ROUNDS * tokens * head * (4 + 2 * GENOMES), ROUNDS * weights)


def refit_passes(dense: ModelShape, pruned: ModelShape, tokens: int, length: int, value: int) -> Passes:
    """Of the refit: the dense model once, the pruned one three times; moments of inputs and of what is lacking; solutions.

    Args:
        dense: the model that is pruned.
        pruned: at the target.
        tokens: that it is made on.
        length: of a sequence.
        value: bytes of a stored weight.
    """
    widths = [c for w in pruned.layers for c in (w.heads * pruned.head_dim, w.intermediate) if c]
    moments = sum(2 * tokens * (c * c + dense.hidden * c) for c in widths)
    solved = sum(len(DAMPINGS) * (c**3 // 3 + 4 * dense.hidden * c * c) for c in widths)
    forward = forward_flops(dense, length, head=False) + 3 * forward_flops(pruned, length, head=False)
    return Passes(tokens * forward, moments + solved, (dense.layer_parameters + pruned.layer_parameters) * value)


def judge_passes(dense: ModelShape, pruned: ModelShape, tokens: int, length: int, value: int) -> Passes:
    """Of what says how deep a refit goes: the dense model once, the pruned one at every depth from where its refit ends, and the
    heads of both.

    Args:
        dense: the model that is pruned.
        pruned: at the target.
        tokens: of blocks.select.
        length: of a sequence.
        value: bytes of a stored weight.
    """
    tokens, models = min(tokens, JUDGED_TOKENS), DEPTHS + 1
    forward = forward_flops(dense, length, head=False) + (1 + models / 2) * forward_flops(pruned, length, head=False)
    head = 2 * dense.vocabulary * dense.hidden
    return Passes(tokens * forward, 2 * models * tokens * head, (dense.layer_parameters + pruned.parameters) * value)
