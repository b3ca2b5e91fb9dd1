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
from darwinlm.comparison.methods.formats import formats_alone, one_format, structure_and_formats, then_quantized
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
    formats: bool = False
    """Whether it gives modules formats, within the bytes of a file: formats must be asked for, or must not."""
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
    "one_format": Method("one format", one_format, formats=True),
    "then_quantized": Method("DarwinLM, then one format", then_quantized, searches=True, formats=True),
    "formats_alone": Method("formats alone", formats_alone, searches=True, formats=True),
    "darwinlm_formats": Method("DarwinLM, structure and formats", structure_and_formats, searches=True, formats=True),
}


def methods_named(names: str, *, in_formats: bool = False) -> list[str]:
    """Names from a list with commas; `all` stands for every method.

    Args:
        names: as typed.
        in_formats: whether modules are to have formats.

    Raises:
        RequestError: a method is unknown, or none is named, or one gives formats where none are asked, or none where they are.
    """
    there = [name for name, method in METHODS.items() if method.formats == in_formats]
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in there and name != "all"]:
        if unknown[0] in METHODS:
            with_formats = f"with --formats there are: all, {', '.join(there)}"
            other = with_formats if in_formats else "it gives modules formats: give them by --formats"
            raise RequestError(f"--methods names {unknown[0]}; {other}.")
        near = did_you_mean(unknown[0], there)
        raise RequestError(f"There is no method '{unknown[0]}'; there are: all, {', '.join(there)}.{near}")
    if not asked:
        raise RequestError(f"--methods names no method. Give all, or some of: {', '.join(there)}.")
    return [name for name in there if name in asked or "all" in asked]
