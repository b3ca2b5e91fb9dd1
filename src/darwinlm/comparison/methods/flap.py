"""FLAP (arXiv 2312.11983): inputs that fluctuate least leave, over all modules at once, and their mean stays as a bias.

The score of a column of an output matrix is the variance of its input over the tokens times the squared norm of its
weights (WIFV). Scores are standardized within each module, those of a unit averaged, and one threshold for all modules
meets the budget: the adaptive structure of its results (AL-AM). What leaves is replaced by its mean: W x of the mean inputs
becomes a bias of the output matrix, which counts as parameters. Nothing is refitted.

What differs: a module takes the level of its ladder that is nearest to the units under the threshold, and one that is gone
holds no bias. The released code squares the scores of attention before it standardizes them; here none are. A
checkpoint can hold such biases in the Llama family alone (`attention_bias`, `mlp_bias`), but models of a comparison are scored
and trained in memory, with their biases in any family. `flap_no_bias` leaves them out at the same parameters.

Letters: C = columns of an output matrix, G = units (groups of columns), R = hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.layers import watch_inputs
from darwinlm.comparison.methods.orders import Orders, removal_orders, write_orders
from darwinlm.comparison.methods.task import Task
from darwinlm.database.levels import Ladder
from darwinlm.genome import Genome
from darwinlm.models.sites import KINDS
from darwinlm.target.budget import Budget, Step


class Fluctuation(NamedTuple):
    """Of the inputs of one output matrix."""

    mean: Tensor
    """(C,) float64, over all tokens."""
    score: Tensor
    """(G,) float64, standardized."""


def flap(task: Task) -> Genome:
    """Levels within the budget, biases included; orders and biases lie in the task's folder."""
    return _flap(task, biases=True)


def flap_no_bias(task: Task) -> Genome:
    """The same without biases: what leaves is zero."""
    return _flap(task, biases=False)


def _flap(task: Task, *, biases: bool) -> Genome:
    found = task.once("FLAP", lambda: fluctuations(task), any_share=True)
    ladders, source = task.space.ladders, task.assembler.source
    scores = [found[l.name].score for l in ladders]
    levels = Orders(source, ladders, removal_orders(ladders, scores))
    budget = task.parameter_limit(Assembler(source, levels))
    genome = under_one_threshold(ladders, scores, _with_biases(budget, task) if biases else budget)
    added = {
        l.name: _bias(task, l, levels.kept(l.name, level), found[l.name].mean)
        for l, level in zip(ladders, genome, strict=True)
        if biases and 0 < level < l.top
    }
    write_orders(task.folder, levels.orders, added)
    return genome


def fluctuations(task: Task) -> dict[str, Fluctuation]:
    """{module: mean and standardized score of its inputs}, on all of the text."""
    sums: dict[str, Tensor] = {}  # (2, C): of the inputs and of their squares
    count = task.teacher.tokens.numel()

    def see(name: str, inputs: Tensor) -> None:
        x = inputs.flatten(0, -2)
        norm = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64)
        sums[name] = sums.get(name, 0) + torch.stack([x.sum(0, dtype=torch.float64), norm.square()]).cpu()

    watch_inputs(task, see)
    return {
        l.name: _fluctuation(l, sums[l.name] / count, task.assembler.output_matrix(l)[0]) for l in task.space.ladders
    }


def _fluctuation(ladder: Ladder, moments: Tensor, weight: Tensor) -> Fluctuation:
    mean, square = moments
    score = (square - mean.square()).clamp_min(0) * weight.double().square().sum(0).cpu()  # (C,)
    spread = score.std()
    standard = (score - score.mean()) / spread if spread > 0 else torch.zeros_like(score)
    return Fluctuation(mean, standard.unflatten(0, (-1, ladder.group_size)).mean(1))


def under_one_threshold(ladders: Sequence[Ladder], scores: Sequence[Tensor], budget: Budget) -> Genome:
    """The full genome of the lowest threshold on all scores at which the budget is kept.

    Args:
        ladders: of the modules, none pruned before.
        scores: (G,) of every module.
        budget: that can be kept.
    """
    reached = [_thresholds(ladder, score) for ladder, score in zip(ladders, scores, strict=True)]
    steps = sorted((at, module, level) for module, row in enumerate(reached) for level, at in enumerate(row, start=1))
    genome = list(budget.lowest)
    for _, module, level in steps:
        if budget.within(tuple(genome)):
            break
        genome[module] = level

    def highest(options: list[Step]) -> Step:
        return max(options, key=lambda step: (reached[step[0][0]][step[0][1] - 1], step))

    return budget.repair(tuple(genome), highest)


def _thresholds(ladder: Ladder, score: Tensor) -> list[float]:
    """For each level but the first, the threshold from which on it is the nearest to the units that lie under it."""
    ascending = score.sort().values.tolist()
    middles = ((low + high + 1) // 2 for low, high in zip(ladder.removed, ladder.removed[1:]))
    return [ascending[middle - 1] for middle in middles]


def _with_biases(budget: Budget, task: Task) -> Budget:
    """Where an output matrix has no bias, one counts at all levels but dense and gone."""
    shape, (limit,) = task.assembler.source.shape, budget.limits
    held = dict(zip(KINDS, shape.biases[1:]))
    costs = tuple(
        tuple(cost + shape.hidden * (0 < level < l.top and not held[l.kind]) for level, cost in enumerate(row))
        for l, row in zip(task.space.ladders, limit.costs, strict=True)
    )
    return replace(budget, limits=(replace(limit, costs=costs),))


def _bias(task: Task, ladder: Ladder, kept: Tensor, mean: Tensor) -> Tensor:
    """(R,) float32: the bias that the matrix has, and what its lost columns put out for mean inputs."""
    weight, bias = task.assembler.output_matrix(ladder)
    lost = mean.index_fill(0, kept, 0)
    added = weight.double().cpu() @ lost
    return (added if bias is None else bias.double().cpu() + added).float()
