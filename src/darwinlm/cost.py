"""What a genome costs, from shapes alone: parameters, bytes on disk, memory of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from darwinlm.config import RunConfig, SearchConfig
from darwinlm.database.levels import Ladder
from darwinlm.formats.types import stored_bytes
from darwinlm.genome import Genome
from darwinlm.losses import CHUNK_VALUES
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.runtime.memory import Need


def nominal_widths(shape: ModelShape, ladders: Sequence[Ladder], genome: Genome) -> list[LayerWidths]:
    """Layer widths of a genome before it is known which heads leave.

    Where query heads leave one by one, K and V count in full until the module is gone, as the paper counts them.
    """
    layers = list(shape.layers)
    for ladder, level in zip(ladders, genome, strict=True):
        layers[ladder.layer] = layers[ladder.layer].having(ladder.kind, nominal_module(shape, ladder, level))
    return layers


def nominal_module(shape: ModelShape, ladder: Ladder, level: int) -> LayerWidths:
    """The same of one module, in an otherwise absent layer."""
    if ladder.kind == "mlp":
        return ladder.mlp(level)
    kept = ladder.columns - ladder.removed[level] * ladder.group_size
    now, heads = shape.layers[ladder.layer], kept // shape.head_dim
    if ladder.level(level) <= ladder.level(ladder.present):  # as it is, padding included
        return now.without({"mlp"})
    whole_groups = ladder.group_size == shape.head_dim * (now.heads // now.kv_heads)
    return LayerWidths(heads, kept // ladder.group_size if whole_groups else now.kv_heads * (heads > 0), 0)


def database_bytes(shape: ModelShape, ladders: Sequence[Ladder], bytes_per_value: int) -> int:
    """Size of the level database: the kept columns of every level between dense and gone."""
    kept = sum(ladder.columns - count * ladder.group_size for ladder in ladders for count in ladder.between)
    return kept * shape.hidden * bytes_per_value


def rounded_bytes(shape: ModelShape, ladders: Sequence[Ladder], formats: Sequence[str]) -> int:
    """Size of the levels in formats beside it: of each the matrices in front, whole, and the output matrices of all levels that are
    not gone."""
    found = 0
    for ladder in ladders:
        now = shape.layers[ladder.layer].without({"mlp" if ladder.kind == "attention" else "attention"})
        fronts = shape.module_parameters(now) // shape.hidden - ladder.columns  # rows
        for name in set(formats) if ladder.columns else ():
            found += stored_bytes((fronts, shape.hidden), name)
            for count in ladder.open_counts[:-1]:
                found += stored_bytes((shape.hidden, ladder.columns - count * ladder.group_size), name)
    return found


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted peak memory of the stages, in bytes, on the device that computes."""

    database: int
    search: int
    host: int
    """In host memory beside a GPU, of each rank: dense weights, and what candidates are distilled from."""
    hidden_states: int
    """Activations of the calibration blocks, in host memory while the database is built."""
    refit: int
    """0 where there is none."""
    rounding: int
    """Of levels in formats; 0 where there are none."""
    survivors: int
    """Weights and moments of the survivors of a selection step, kept for the next one where there is room."""


class Work(NamedTuple):
    """What memory is predicted from."""

    shape: ModelShape
    """The dense model."""
    pruned: ModelShape
    """The model at the target."""
    config: RunConfig
    value_bytes: int
    """Of a stored weight."""
    compute: torch.dtype
    """Arithmetic of the forward passes."""
    on_host: bool
    """Whether device and host share one memory."""

    @property
    def weights(self) -> torch.dtype:
        """What candidates are trained in."""
        asked = self.config.search.weights
        return self.compute if asked == "auto" else getattr(torch, asked)


def plan_memory(
    shape: ModelShape, pruned: ModelShape, config: RunConfig, value_bytes: int, compute: torch.dtype, on_host: bool
) -> MemoryPlan:
    """Peak memory of database, search and refit, without what the runtime itself takes; arguments as in `Work`.

    The database holds one block, its Hessian, that of the tokens held back where there are any, and the four matrices of
    its size that OBS works on (of experts, each one's Hessian and such matrices of one at a time); twice as much where
    float32 cannot factor a Hessian, which is not counted. The search holds one candidate, in training where there is any,
    and the dense head in float32; where the host itself computes, the dense weights, too. The refit holds a block of both
    models and, in float64, sums over the tokens that are fitted to and those that check, and what a matrix is solved with, or
    the columns of an MLP are chosen with again; with formats one sequence's attention. Rounding levels to formats holds that, a
    block, second moments of what its matrices are fed, and in float64 one matrix and three of the size of its Hessian.
    """
    work, length = Work(shape, pruned, config, value_bytes, compute, on_host), config.blocks.sequence_length
    widest = max(max(w.heads * shape.head_dim, w.columns) for w in shape.layers)
    sums = 1 + (config.database.rel_damp == "auto")
    squares = [
        columns**2 * (4 + sums * count)
        for w in shape.layers
        for columns, count in ((w.heads * shape.head_dim, 1), (w.intermediate, max(w.experts, 1)))
    ]
    block = shape.layer_parameters // len(shape.layers) * compute.itemsize
    batch_tokens = config.database.batch_sequences * length
    activations = batch_tokens * (widest + 4 * shape.hidden) * 4
    database = block + 4 * max(squares) + activations
    side, attended = max(widest, shape.hidden), 12 * length**2 * max(w.heads for w in shape.layers)
    attended = attended if config.target.formats else 0
    refit = 2 * block + 8 * _refit_values(shape, config) + activations + attended
    rounding = block + 32 * side**2 + 20 * side * shape.hidden + activations + attended if config.target.formats else 0
    dense = shape.parameters * value_bytes
    search = shape.vocabulary * shape.hidden * 4 + (dense if on_host else 0)
    if not config.search.generations:  # the start streams
        search += streamed_memory(shape, config)
    elif not any(config.search.train_tokens):
        search += pruned.parameters * compute.itemsize
    elif config.search.training == "refit":  # that first, then the whole candidate
        search += max(refit, pruned.parameters * compute.itemsize)
    else:
        search += trial_memory(pruned, config.search, length, work.weights)
    hidden_states = config.blocks.hessian * length * shape.hidden * compute.itemsize
    distilled = config.search.generations > 0 and config.search.training == "distillation"
    taught = max(config.search.train_tokens) * shape.hidden * compute.itemsize if distilled else 0
    survivors = max(config.search.survivors[:-1], default=0) * pruned.parameters * trained_bytes(work.weights)
    search, host = (search + taught, 0) if on_host else (search, dense + taught)
    refit = refit if config.refit.tokens else 0
    return MemoryPlan(database, search, host, hidden_states, refit, rounding, survivors)


def _refit_values(shape: ModelShape, config: RunConfig) -> int:
    """Numbers in the sums of the widest matrix and in what is solved with them: C^2 of the inputs, H C of the outputs."""
    found = [0]
    for widths in shape.layers:
        again = config.refit.choose_again and not widths.experts
        for columns, parts, squares in (
            (widths.heads * shape.head_dim, 1, 3),
            (widths.intermediate, widths.experts or 1, 5 if again else 3),
        ):
            found.append(columns**2 * (2 * parts + squares) + columns * shape.hidden * (2 * parts + 3))
    return max(found)


def streamed_memory(shape: ModelShape, config: RunConfig) -> int:
    """Bytes of one block at work in a linearization, in float32: weights, all levels of its modules, each in all formats,
    activations, logits.

    Whatever the depth: inputs and gradients of all blocks wait in host memory.
    """
    block = shape.layer_parameters // len(shape.layers) * 4
    tokens = 8 * (config.search.sequence_tokens or config.blocks.sequence_length)
    widest = max(shape.layers, key=lambda w: w.heads * shape.head_dim + w.columns)
    columns = widest.heads * shape.head_dim + widest.columns
    levels = columns * shape.hidden * 4 * config.database.levels // 2
    formats = 1 + len(config.target.formats)
    return (1 + formats) * block + formats * levels + 3 * _activations(shape, widest, tokens, 4) + 4 * CHUNK_VALUES * 4


def database_need(work: Work) -> Need:
    """Of building the database; hidden states count where they may not go elsewhere."""
    memory, database = plan_memory(*work), work.config.database
    there = memory.hidden_states if database.hidden_states == ("host" if work.on_host else "device") else 0
    beside = memory.hidden_states if database.hidden_states == "host" and not work.on_host else 0
    remedies = [
        ("set database.hidden_states to auto", bool(there or beside)),
        ("lower database.batch_sequences", database.batch_sequences > 1),
        ("shorten blocks.sequence_length", True),
    ]
    return Need("Building the database", memory.database + there, beside, _open(remedies))


def rounding_need(work: Work) -> Need:
    """Of rounding all levels to formats before a search; nothing where there are none."""
    remedies = [
        ("shorten blocks.sequence_length", True),
        ("leave target.formats out, and quantize afterwards", True),
    ]
    return Need("Rounding the levels to formats", plan_memory(*work).rounding, 0, _open(remedies))


def search_need(work: Work) -> Need:
    """Of the search."""
    memory = plan_memory(*work)
    return Need("The search", memory.search, memory.host, training_remedies(work))


def refit_need(work: Work) -> Need:
    """Of the refit; nothing where there is none."""
    config = work.config
    remedies = [
        ("set refit.choose_again to false", config.refit.choose_again),
        ("lower database.batch_sequences", config.database.batch_sequences > 1),
        ("set refit.tokens to 0 (no refit)", True),
    ]
    return Need("The refit", plan_memory(*work).refit, 0, _open(remedies))


def training_need(what: str, work: Work, shape: ModelShape, *remedies: str) -> Need:
    """Of a float32 training in a comparison, beside the dense weights and the teacher's head.

    Args:
        what: the training.
        work: what it belongs to.
        shape: of the model that is trained.
        remedies: of its own.
    """
    search, length = work.config.search, work.config.blocks.sequence_length
    copies = shape.parameters * work.compute.itemsize if work.compute != torch.float32 else 0  # autocast keeps them
    peak = trial_memory(shape, search, length, torch.float32) + copies
    checkpointing = [] if search.gradient_checkpointing else ["set search.gradient_checkpointing to true"]
    return beside_dense(what, work, peak, *checkpointing, "shorten blocks.sequence_length", *remedies)


def beside_dense(what: str, work: Work, peak: int, *remedies: str) -> Need:
    """Of work at a peak, beside the dense weights in host memory and the teacher's head."""
    dense, head = work.shape.parameters * work.value_bytes, work.shape.vocabulary * work.shape.hidden * 4
    device, host = (peak + head + dense, 0) if work.on_host else (peak + head, dense)
    return Need(what, device, host, remedies)


def training_remedies(work: Work) -> tuple[str, ...]:
    """What makes the training of candidates smaller, as far as it is not asked for."""
    search = work.config.search
    trains = any(search.train_tokens) and search.training != "refit"
    remedies = [
        ("set search.gradient_checkpointing to true", trains and not search.gradient_checkpointing),
        ("lower search.batch_sequences", trains and search.batch_sequences > 1),
        ("shorten blocks.sequence_length", trains),
        ("choose --dtype bfloat16", work.compute == torch.float32),
        ("set search.weights to auto", work.weights.itemsize > work.compute.itemsize),
        ("set search.train_tokens to zeros (selection without training)", trains),
        ("ask for a smaller model", True),
    ]
    return _open(remedies)


def _open(remedies: list[tuple[str, bool]]) -> tuple[str, ...]:
    return tuple(text for text, helps in remedies if helps)


def forward_flops(shape: ModelShape, length: int, *, head: bool = True) -> int:
    """A forward pass, per token, in sequences of `length`: all matrices, and causal attention to half of the tokens."""
    attention = sum(2 * widths.heads * shape.head_dim * length for widths in shape.layers)
    return 2 * shape.active_layer_parameters + attention + (2 * shape.vocabulary * shape.hidden if head else 0)


def entering(search: SearchConfig) -> list[int]:
    """Candidates of each selection step; the parent joins the last one."""
    counts = [search.offspring, *search.survivors[:-1]]
    return [*counts[:-1], counts[-1] + 1]


def generation_tokens(search: SearchConfig, devices: int = 1) -> tuple[int, int]:
    """Tokens of the candidates of a generation, (trained on, scored on), by the busiest device: steps are shared out, no
    candidate is split."""
    steps = [(-(-count // devices), stage) for count, stage in zip(entering(search), search.stages)]
    return sum(n * stage.train_tokens for n, stage in steps), sum(n * stage.select_tokens for n, stage in steps)


def survivors_tokens(search: SearchConfig) -> int:
    """Tokens that survivors of a generation have behind them when a step begins: trained on twice unless they are kept."""
    steps = zip(search.survivors, pairwise(search.train_tokens))
    return sum(count * behind for count, (behind, asked) in steps if behind <= asked)


def trial_memory(pruned: ModelShape, search: SearchConfig, length: int, weights: torch.dtype) -> int:
    """Bytes at the peak of the trial training of a candidate of this shape.

    Its weights and what AdamW keeps of them, with all activations that the backward pass needs, or, of float32 weights, with
    all gradients once the activations are gone, whichever is more; gradients of bfloat16 weights live one at a time. Not
    the survivors of the step before, which are kept only where there is room.

    Args:
        pruned: of the candidate.
        search: how it is trained.
        length: tokens of a block.
        weights: of the candidate.
    """
    tokens = search.batch_sequences * length
    value = weights.itemsize
    activations = activation_bytes(pruned, tokens, value, search.gradient_checkpointing)
    before = trained_bytes(weights) * pruned.parameters + activations
    return max(before, 4 * value * pruned.parameters) if value == 4 else before


def trained_bytes(weights: torch.dtype) -> int:
    """Bytes of a parameter in trial training: its value and two moments, of a bfloat16 one also what rounding cut off."""
    return (4 if weights == torch.bfloat16 else 3) * weights.itemsize


def activation_bytes(shape: ModelShape, tokens: int, value: int, checkpointing: bool) -> int:
    """Bytes of the activations that a backward pass through all layers needs.

    Args:
        shape: of the model.
        tokens: in the pass.
        value: bytes of a number.
        checkpointing: they are made again layer by layer.
    """
    per_layer = [_activations(shape, widths, tokens, value) for widths in shape.layers]
    return tokens * shape.hidden * value * len(per_layer) + max(per_layer) if checkpointing else sum(per_layer)


def _activations(shape: ModelShape, widths: LayerWidths, tokens: int, value: int) -> int:
    """Bytes of one layer's activations that its backward pass needs."""
    attention = shape.stock.linear.token if widths.linear else 0
    if widths.heads:
        attention = shape.family.site("attention").saved * widths.heads * shape.head_dim + 6 * shape.hidden
    columns = widths.intermediate * (shape.chosen if widths.experts else 1)
    mlp = shape.family.site("mlp").saved * columns + 4 * shape.hidden if columns else 0
    return tokens * (attention + mlp) * value
