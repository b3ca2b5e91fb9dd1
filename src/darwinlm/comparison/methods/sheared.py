"""ShearedLLaMA (arXiv 2310.06694): masks over units and modules are learned together with the weights, at a fixed budget.

Hard concrete gates (`hard_concrete`) close heads, MLP columns and whole modules while the model trains on cross entropy;
Lagrange multipliers pull the expected kept share of each kind of module to the budget of all other methods. Afterwards
every module takes the level nearest to its expected share, so that each kind meets its sum of levels exactly; the
units of the least gates leave; what stays keeps the weights as trained with the gates, without a refit.

What differs from the paper: it fixes the widths of every layer and also prunes the hidden dimension, which no
method here does. Its cost is counted: by default as many training tokens as all candidates of the search, or of one
generation where it has none, one full-size model trained in their place, and the trained model stays on disk beside its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.comparison.methods.masks import Constraints, Masks, fold, gated, output_of
from darwinlm.comparison.methods.orders import ordered_model, removal_orders, write_orders
from darwinlm.comparison.methods.task import Task
from darwinlm.cost import Work, generation_tokens, training_need
from darwinlm.errors import RequestError
from darwinlm.genome import Genome, Space
from darwinlm.losses import next_token_loss
from darwinlm.models.family import Family
from darwinlm.models.head import head_of
from darwinlm.models.source import ModelSource
from darwinlm.runtime.files import read_json, write_json, write_tensors
from darwinlm.runtime.memory import Need
from darwinlm.runtime.progress import progress
from darwinlm.runtime.seeds import torch_generator
from darwinlm.search.propose import allocate
from darwinlm.search.samples import batches, draw
from darwinlm.search.trial import checkpoint_activations
from darwinlm.target.budget import level_budget

MULTIPLIER_RATE = 1.0
"""Learning rate of the Lagrange multipliers, as there."""


def sheared(task: Task) -> Genome:
    """Learn masks and weights, keep the model in the task's folder, and return its levels."""
    task.found.pop(("masks", task.share, task.seed), None)  # others keep no model, and it must lie in this folder
    return task.once("masks", lambda: _levels(task, keep=True))


def sheared_levels(task: Task) -> Genome:
    """The levels alone: heads and columns, with their refits, come from the second-order database."""
    return task.once("masks", lambda: _levels(task, keep=False))


def _levels(task: Task, *, keep: bool) -> Genome:
    model, masks = learn(task)
    gone = (1 - masks.kept().detach()).tolist()
    if keep:
        _keep(task, model, masks)
    return nearest_levels(task.space, gone, task.share)


def sheared_tokens(task: Task) -> int:
    """Tokens that masks and weights are trained on."""
    return task.sheared.tokens or generation_tokens(task.search)[0] * max(1, task.search.generations)


def sheared_model(task: Task, genome: Genome, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that `sheared` left in the task's folder, with weights of its own.

    Args:
        task: the one that was solved.
        genome: the answer.
        device: where the model is to lie.
        dtype: of its weights.

    Raises:
        DamagedFileError: it is not there, or not whole.
    """
    return ordered_model(task, genome, device, dtype, ModelSource(str(_folder(task))))


def sheared_need(work: Work) -> Need:
    """Memory of the training of masks and weights: a whole float32 model, AdamW and all activations."""
    return training_need("ShearedLLaMA's training", work, work.shape, "leave sheared out of --methods")


def sheared_refusal(family: Family) -> str:
    """Why masks cannot be learned on a family; empty where they can."""
    if family.experts:
        return "its gates are on the columns of one MLP, and its layers have experts"
    return "gates cannot close modules in front of a norm" if any(site.post_norm for site in family.sites) else ""


def learn(task: Task) -> tuple[Any, Masks]:
    """Train masks and weights together; the full-size model, without gates, and the masks.

    Raises:
        RequestError: the loss is no longer finite.
    """
    config, ladders, device = task.sheared, task.space.ladders, task.teacher.head.device
    model = task.assembler.model(task.space.present, device, torch.float32).train()
    if task.search.gradient_checkpointing:
        checkpoint_activations(model)
    masks, constraints = Masks(ladders, device), Constraints(task.space, task.share, device)
    weights = list(model.parameters()) if config.learning_rate else []
    for parameter in model.parameters():
        parameter.requires_grad_(bool(weights))
    optimizers = [
        torch.optim.Adam(masks.parameters(), lr=config.mask_learning_rate),
        torch.optim.Adam(constraints.parameters(), lr=MULTIPLIER_RATE, maximize=True),
        *([torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0, fused=True)] if weights else []),
    ]
    autocast = torch.autocast(device.type, dtype=task.dtype, enabled=task.dtype != torch.float32)
    steps = list(_batches(task))
    with progress("Masks", len(steps)) as advance:
        for number, tokens in enumerate(steps):
            torch.manual_seed(number)  # dropout, where a model has it
            gates = masks.draw(torch_generator(task.seed, "gates", number))
            warmed = min(1.0, (number + 1) / max(1.0, config.warm_up * len(steps)))
            with gated(model, ladders, gates):
                with autocast:
                    hidden = model.model(input_ids=tokens.to(device), use_cache=False).last_hidden_state
                    loss = next_token_loss(hidden, head_of(model), tokens.to(device))
                (_finite(loss, config.learning_rate) + constraints.penalty(masks.kept(), warmed)).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            masks.bound()
            advance(f"loss {loss.item():.3f}, kept {masks.kept().mean().item():.3f}")
    return model.eval(), masks


def _batches(task: Task) -> Iterator[Tensor]:
    """(blocks, T) ids of every step; the blocks are drawn anew whenever all have been seen."""
    left, epoch = sheared_tokens(task), 0
    while left > 1:
        drawn = draw(task.train, min(left, task.train.numel()), task.seed, "masks", epoch, 0)
        for blocks, length in batches(drawn, task.search.batch_sequences):
            yield task.train[blocks, :length]
        left, epoch = left - task.train.numel(), epoch + 1


def _finite(loss: Tensor, learning_rate: float) -> Tensor:
    if not torch.isfinite(loss):
        raise RequestError(
            f"The loss of ShearedLLaMA became {loss.item()}. Lower sheared.learning_rate (now {learning_rate:g}) or use "
            "--dtype float32."
        )
    return loss


def nearest_levels(space: Space, gone: Sequence[float], share: float) -> Genome:
    """The genome with the budget's sum of levels in each kind whose modules are nearest to learned shares.

    Args:
        space: the modules.
        gone: part of every module's units that is to go.
        share: of the budget.

    Returns:
        The levels of the least sum of squared distances, each in steps of its module.
    """
    distances = [
        [(ladder.top * (count / ladder.removed[-1] - part)) ** 2 for count in ladder.removed]
        for ladder, part in zip(space.ladders, gone, strict=True)
    ]
    found = allocate(distances, level_budget(space, share))
    if found is None:
        raise ValueError(f"no allocation of {share:.1%} of every kind")
    return found


def _folder(task: Task) -> Path:
    return task.folder / "sheared"


def _keep(task: Task, model: Any, masks: Masks) -> None:
    """Write the trained model with its gates folded in, and the order in which its units leave."""
    folder, source, ladders = _folder(task), task.assembler.source, task.space.ladders
    norms = [output_of(model, l).weight.detach().unflatten(1, (-1, l.group_size)).norm(dim=(0, 2)) for l in ladders]
    fold(model, ladders, masks.at_rest())
    stored = {
        name: tensor.detach().to("cpu", source.dtype_of(name), copy=True).contiguous()
        for name, tensor in model.state_dict().items()
        if name in source.files
    }
    settings = {key: value for key, value in read_json(source.folder / "config.json").items() if key != "auto_map"}
    write_json(folder / "config.json", settings)
    write_tensors(folder / "model.safetensors", stored, {"format": "pt"})
    write_orders(folder, removal_orders(ladders, [units.detach() for units in masks.units], norms))
