"""Minitron (arXiv 2407.14679), width: heads and MLP channels leave by mean activation norms, as many in every layer.

The importance of a unit is the norm of what it hands to the output matrix at a token, averaged over the tokens of a
sequence, and of that the L2 norm over sequences: (L2, mean), the aggregation over (batch, sequence) that is best there.
Nothing is refitted. All layers get one width of attention and one of MLP; where the budget lies between two steps of the
MLP's ladder, some layers, drawn at random, keep one step more. For each width of attention there is one widest MLP; of
these pairs the one of the least KL to the dense model is taken, on `search.start_tokens` and as pruned, where the paper
trains its candidates for a while.

What differs: hidden channels stay, which no method here removes. Its depth pruning ranks layers by block importance,
which is ShortGPT's measure: `minitron_depth` is that method under its other name.

Letters: S = sequences, T = tokens in a sequence, C = columns of an output matrix, G = units (groups of columns).
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.layers import watch_inputs
from darwinlm.comparison.methods.orders import Orders, removal_orders, write_orders
from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome, Space
from darwinlm.runtime.seeds import python_random
from darwinlm.search.screen import untrained_kls
from darwinlm.target.budget import Budget, Step


def minitron(task: Task) -> Genome:
    """The best pair of widths within the budget; the orders lie in the task's folder."""
    found = task.once("Minitron", lambda: activation_norms(task), any_share=True)
    source, ladders = task.assembler.source, task.space.ladders
    levels = Orders(source, ladders, removal_orders(ladders, [found[ladder.name] for ladder in ladders]))
    write_orders(task.folder, levels.orders)
    assembler = Assembler(source, levels)
    candidates = equal_widths(task.space, task.parameter_limit(assembler), python_random(task.seed, "start"))
    if not candidates:
        return task.uniform
    kls = untrained_kls(assembler, candidates, task.targets(), task.dtype)
    return min(zip(candidates, kls), key=lambda scored: scored[1].mean().item())[0]


def activation_norms(task: Task) -> dict[str, Tensor]:
    """{module: (G,) float64 importances of its units}, on all of the text."""
    groups = {ladder.name: ladder.group_size for ladder in task.space.ladders}
    sums: dict[str, Tensor] = {}

    def see(name: str, inputs: Tensor) -> None:
        for sequence in inputs.unflatten(-1, (-1, groups[name])):
            norms = torch.linalg.vector_norm(sequence, dim=-1, dtype=torch.float32)  # (T, G)
            sums[name] = sums.get(name, 0) + norms.mean(0, dtype=torch.float64).square().cpu()

    watch_inputs(task, see)
    return {name: total.sqrt() for name, total in sums.items()}


def equal_widths(space: Space, budget: Budget, rng: random.Random) -> list[Genome]:
    """For each level of attention but gone, the widest MLPs of one level within the budget, filled up to it.

    Args:
        space: modules of which those of a kind have the same ladder.
        budget: on all of them.
        rng: says which layers keep a step more.
    """
    attention, mlp = space.members("attention"), space.members("mlp")
    rank = rng.sample(range(len(space.ladders)), len(space.ladders))

    def widest_last(steps: list[Step]) -> Step:
        return max(steps, key=lambda step: (step[0][1], rank[step[0][0]]))

    found: list[Genome] = []
    for heads in range(space.ladders[attention[0]].top):
        for columns in range(space.ladders[mlp[0]].top):
            genome = tuple(heads if ladder.kind == "attention" else columns for ladder in space.ladders)
            if budget.within(genome):
                found.append(budget.repair(genome, widest_last, last=attention))
                break
    return list(dict.fromkeys(found))
