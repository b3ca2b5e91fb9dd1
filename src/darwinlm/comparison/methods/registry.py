"""All methods, by the names that are typed. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from darwinlm.comparison.methods.darwin import (
    darwinlm,
    darwinlm_parameters,
    darwinlm_stock,
    darwinlm_untrained,
    trial_tokens,
)
from darwinlm.comparison.methods.evopress import evopress
from darwinlm.comparison.methods.flap import flap, flap_no_bias
from darwinlm.comparison.methods.llm_pruner import llm_pruner
from darwinlm.comparison.methods.magnitude import magnitude
from darwinlm.comparison.methods.minitron import minitron
from darwinlm.comparison.methods.orders import ordered_model
from darwinlm.comparison.methods.random_levels import random_levels
from darwinlm.comparison.methods.sheared import (
    sheared,
    sheared_levels,
    sheared_model,
    sheared_need,
    sheared_refusal,
    sheared_tokens,
)
from darwinlm.comparison.methods.shortened_llama import shortened_llama, shortened_llama_taylor
from darwinlm.comparison.methods.shortgpt import shortgpt
from darwinlm.comparison.methods.sliding_cosine import sliding_cosine
from darwinlm.comparison.methods.task import Task
from darwinlm.comparison.methods.taylor import taylor_need
from darwinlm.comparison.methods.uniform import uniform_levels
from darwinlm.comparison.methods.ziplm import ziplm, ziplm_kinds
from darwinlm.config.described import did_you_mean
from darwinlm.cost import Work, search_need
from darwinlm.errors import RequestError
from darwinlm.genome import Genome
from darwinlm.models.family import Family
from darwinlm.runtime.memory import Need


def database_model(task: Task, genome: Genome, device: torch.device, dtype: torch.dtype) -> Any:
    """A genome's model from the task's database."""
    return task.assembler.model(genome, device, dtype)


@dataclass(frozen=True)
class Method:
    """A way to choose what leaves."""

    title: str
    find: Callable[[Task], Genome]
    searches: bool = False
    """Whether the search's settings count: generations, offspring, selection, trial training."""
    seeds: int = 1
    """Runs with different seeds whose mean is reported."""
    tokens: Callable[[Task], int] = lambda task: 0
    """Tokens that were trained on to find the levels."""
    model: Callable[[Task, Genome, torch.device, torch.dtype], Any] = database_model
    """The model of the levels found, with weights of its own."""
    keeps: bool = False
    """Whether it leaves a model of full size in the task's folder."""
    settings: tuple[str, ...] = ()
    """Groups of settings that are its own."""
    need: Callable[[Work], Need] | None = None
    """Memory of a training of its own."""
    stock: bool = False
    """Whether its models are of the stock shape."""
    refusal: Callable[[Family], str] = lambda family: ""
    """Why it does not work on a family; empty where it does."""


def _experts_refused(family: Family) -> str:
    return "it scores rows and columns of single matrices, and its layers have experts" if family.experts else ""


def _linear_refused(family: Family) -> str:
    return "it drops whole layers, and linear attention stays" if family.linear_heads else ""


METHODS = {
    "uniform": Method("uniform", uniform_levels),
    "magnitude": Method("magnitude, uniform", magnitude, model=ordered_model, refusal=_experts_refused),
    "llm_pruner": Method("LLM-Pruner", llm_pruner, model=ordered_model, need=taylor_need, refusal=_experts_refused),
    "flap": Method("FLAP", flap, model=ordered_model, refusal=_experts_refused),
    "flap_no_bias": Method("FLAP, no bias", flap_no_bias, model=ordered_model, refusal=_experts_refused),
    "minitron": Method("Minitron, width", minitron, model=ordered_model, refusal=_experts_refused),
    "minitron_depth": Method("Minitron, depth (as ShortGPT)", shortgpt, refusal=_linear_refused),
    "random": Method("random levels", random_levels, seeds=3),
    "ziplm": Method("ZipLM, parameters", ziplm),
    "ziplm_kinds": Method("ZipLM, levels of a kind", ziplm_kinds),
    "shortgpt": Method("ShortGPT", shortgpt, refusal=_linear_refused),
    "shortened_llama": Method("Shortened LLaMA, perplexity", shortened_llama, refusal=_linear_refused),
    "shortened_llama_taylor": Method(
        "Shortened LLaMA, Taylor",
        shortened_llama_taylor,
        need=taylor_need,
        refusal=lambda family: _experts_refused(family) or _linear_refused(family),
    ),
    "sliding_cosine": Method("sliding-window cosine", sliding_cosine, refusal=_linear_refused),
    "evopress": Method("EvoPress, modules", evopress, searches=True),
    "sheared": Method(
        "ShearedLLaMA",
        sheared,
        searches=True,
        tokens=sheared_tokens,
        model=sheared_model,
        keeps=True,
        settings=("sheared",),
        need=sheared_need,
        refusal=sheared_refusal,
    ),
    "sheared_levels": Method(
        "ShearedLLaMA, our levels",
        sheared_levels,
        searches=True,
        tokens=sheared_tokens,
        settings=("sheared",),
        need=sheared_need,
        refusal=sheared_refusal,
    ),
    "darwinlm_untrained": Method("DarwinLM, untrained selection", darwinlm_untrained, searches=True),
    "darwinlm": Method("DarwinLM", darwinlm, searches=True, tokens=trial_tokens, need=search_need),
    "darwinlm_parameters": Method(
        "DarwinLM, parameters", darwinlm_parameters, searches=True, tokens=trial_tokens, need=search_need
    ),
    "darwinlm_stock": Method(
        "DarwinLM, stock shape", darwinlm_stock, searches=True, tokens=trial_tokens, need=search_need, stock=True
    ),
}


def methods_named(names: str) -> list[str]:
    """Names from a list with commas; `all` stands for every method.

    Raises:
        RequestError: a method is unknown, or none is named.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in METHODS and name != "all"]:
        near = did_you_mean(unknown[0], METHODS)
        raise RequestError(f"There is no method '{unknown[0]}'; there are: all, {', '.join(METHODS)}.{near}")
    if not asked:
        raise RequestError(f"--methods names no method. Give all, or some of: {', '.join(METHODS)}.")
    return [name for name in METHODS if name in asked or "all" in asked]
