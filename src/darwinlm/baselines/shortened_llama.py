"""Shortened LLaMA (arXiv 2402.02834): whole layers leave, those first without which the loss is least.

Both of its measures: the perplexity without a layer, and the first-order Taylor estimate. Layers leave all at once, as
there; its rule to spare the first four and the last two layers is left out, since small models have few more.
"""

from __future__ import annotations

import torch

from darwinlm.baselines.layers import drop_in_order, droppable, without_layers
from darwinlm.baselines.task import Task
from darwinlm.cost import Work, activation_bytes, beside_dense
from darwinlm.genome import Genome
from darwinlm.losses import next_token_loss
from darwinlm.runtime.memory import Need
from darwinlm.search.fitness import SCORING_TOKENS
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
    genomes = {without_layers(task.space, [layer]): layer for layer in droppable(task.space)}
    states = final_hidden(task.assembler, list(genomes), targets, task.dtype, "Layers")
    return {genomes[genome]: targets.nll(hidden, targets.teacher.head) for genome, hidden in states}


def taylor_need(work: Work) -> Need:
    """Memory of the Taylor estimate: float32 weights and gradients, and the activations of a batch of whole blocks."""
    tokens = max(work.config.blocks.sequence_length, min(SCORING_TOKENS, work.config.search.start_tokens))
    activations = activation_bytes(work.shape, tokens, 4, checkpointing=False)
    peak = 8 * work.shape.parameters + activations
    without = "leave shortened_llama_taylor out of --methods"
    return beside_dense("Shortened LLaMA's Taylor estimate", work, peak, "lower search.start_tokens", without)


def taylor_importances(task: Task) -> dict[int, float]:
    """Sum over a layer's matrices of |weight x gradient of the loss|, for every layer (eq. 2 there)."""
    device = task.teacher.head.device
    model = task.assembler.model(without_layers(task.space, ()), device, torch.float32)
    for tokens in task.targets().tokens():
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        loss = next_token_loss(hidden, model.lm_head.weight, tokens)
        (loss * (tokens.shape[1] - 1) * tokens.shape[0]).backward()  # by tokens, so that batches of any size add up
    return {
        layer: sum(
            (weight * weight.grad).abs().sum().item()
            for weight in model.model.layers[layer].parameters()
            if weight.ndim == 2 and weight.grad is not None
        )
        for layer in droppable(task.space)
    }
