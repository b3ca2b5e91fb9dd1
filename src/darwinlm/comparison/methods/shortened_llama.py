"""Shortened LLaMA (arXiv 2402.02834): whole layers leave, those first without which the loss is least.

Both of its measures: the perplexity without a layer, and the first-order Taylor estimate. Layers leave all at once, as
there; its rule to spare the first four and the last two layers is left out, since small models have few more.
"""

from __future__ import annotations

from darwinlm.comparison.methods.layers import drop_in_order, without_layers
from darwinlm.comparison.methods.task import Task
from darwinlm.comparison.methods.taylor import saliences
from darwinlm.genome import Genome
from darwinlm.models.sites import layer_of
from darwinlm.search.screen import final_hidden


def shortened_llama(task: Task) -> Genome:
    """Drop the layers whose absence, each alone, leaves the least perplexity."""
    losses = losses_without(task)
    return drop_in_order(task, sorted(losses, key=lambda layer: losses[layer]))


def shortened_llama_taylor(task: Task) -> Genome:
    """Drop the layers of the least Taylor importance."""
    importances = taylor_importances(task)
    return drop_in_order(task, sorted(importances, key=lambda layer: importances[layer]))


def losses_without(task: Task) -> dict[int, float]:
    """Mean negative log-likelihood of the next token, in nats, of the model without each layer."""
    targets = task.targets()
    genomes = {without_layers(task.space, [layer]): layer for layer in range(len(task.stream))}
    states = final_hidden(task.assembler, list(genomes), targets, task.dtype, "Layers")
    return {genomes[genome]: targets.nll(hidden, targets.teacher.head) for genome, hidden in states}


def taylor_importances(task: Task) -> dict[int, float]:
    """Sum over a layer's matrices of |weight x gradient of the loss|, for every layer (eq. 2 there)."""
    found = dict.fromkeys(range(len(task.stream)), 0.0)
    for name, sums in saliences(task).items():
        if (layer := layer_of(name)) is not None:
            found[layer] += sums.rows.sum().item()
    return found
