"""`darwinlm demo`: the whole method on the embedded model, minutes on a laptop CPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.config import RunConfig
from darwinlm.database.store import Database
from darwinlm.measure.quality import HeldOut
from darwinlm.measure.timing import interleaved, timed
from darwinlm.refit.store import Refits
from darwinlm.run.request import Run, opened
from darwinlm.run.results import evaluation_stage, report_stage
from darwinlm.run.stages import database_stage, export_stage, refit_stage, search_stage

DEMO_MODEL = Path(__file__).parent.parent / "demo_model"
PROMPT = "class Reader:\n    def __init__(self, file):\n        self.file = file\n\n    def close(self):\n"
"""What the three models complete."""


@dataclass(frozen=True)
class DemoRow:
    """One of the three models."""

    name: str
    parameters: int
    perplexity: float
    kl: float
    tokens_per_second: float
    completion: str


def run_demo(config: RunConfig) -> list[DemoRow]:
    """Prune the embedded model; compare dense, uniform and DarwinLM.

    Args:
        config: the settings; the model is always the embedded one.
    """
    config = replace(config, model=str(DEMO_MODEL))
    with opened(config) as run:
        database = database_stage(run)
        genome = search_stage(run, database)
        refits = refit_stage(run, database, genome)
        export_stage(run, database, genome, refits)
        evaluation_stage(run, database, genome, refits)
        report_stage(run)
        return _compare(run, database, genome, refits)


def _compare(run: Run, database: Database, genome: tuple[int, ...], refits: Refits | None) -> list[DemoRow]:
    assembler = run.assembler(database)
    genomes = {"dense": (0,) * len(genome), "uniform": run.uniform_genome, "DarwinLM": genome}
    models = {name: assembler.model(wanted, run.device) for name, wanted in genomes.items()}
    if refits:
        refits.load_into(models["DarwinLM"])
    held_out = HeldOut(run.splits.held_out, run.stream)
    speeds = tokens_per_second(list(models.values()), run.splits.held_out[:8])
    rows = []
    for (name, model), speed in zip(models.items(), speeds):
        quality = held_out.quality_of_model(model)
        completion = complete(model, run.source.tokenizer, PROMPT)
        rows.append(DemoRow(name, quality.parameters, quality.perplexity, quality.kl or 0.0, speed, completion))
    return rows


@torch.no_grad()
def tokens_per_second(models: list[Any], tokens: Tensor, rounds: int = 7) -> list[float]:
    """Median prefill speed of each model on `tokens` (S, T); the models take turns, so that drift hits all alike."""

    def reader(model: Any) -> Callable[[], dict[str, float]]:
        here = tokens.to(model.device)
        return timed(lambda: model(input_ids=here, use_cache=False, logits_to_keep=1), model.device)

    taken = interleaved([reader(model) for model in models], repeats=rounds)
    return [tokens.numel() / statistics.median(seconds["seconds"]) for seconds in taken]


@torch.no_grad()
def complete(model: Any, tokenizer: Any, prompt: str, new_tokens: int = 64) -> str:
    """What a model writes after `prompt`, by beam search that does not repeat long runs."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=4,
        no_repeat_ngram_size=8,
    )
    return tokenizer.decode(output[0], skip_special_tokens=True)
