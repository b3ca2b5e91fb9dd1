"""One thread and one copy of every pico checkpoint and database for the whole session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from transformers.utils import logging

import pico
from darwinlm.assemble import Assembler
from darwinlm.comparison.methods.task import Task
from darwinlm.config import SearchConfig
from darwinlm.database.store import Database
from darwinlm.models.source import ModelSource
from darwinlm.search.fitness import Teacher

torch.set_num_threads(1)
logging.disable_progress_bar()
hypothesis.settings.register_profile("pico", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("pico")

SEARCH = {
    "generations": 2,
    "offspring": 3,
    "survivors": [2, 1],
    "train_tokens": [16, 32],
    "select_tokens": [64, 64],
    "start_tokens": 64,
    "start_rounds": 1,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> the folder of its pico checkpoint; read only."""
    return functools.cache(lambda family: pico.make_checkpoint(tmp_path_factory.mktemp(family), family))


@pytest.fixture(scope="session")
def source(checkpoint) -> Callable[[str], ModelSource]:
    """Family -> its pico checkpoint, opened."""
    return functools.cache(lambda family: ModelSource(str(checkpoint(family))))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory, source) -> Callable[[str, str], Database]:
    """Family and attention unit -> a level database; read only."""
    return functools.cache(
        lambda family, unit: pico.make_database(tmp_path_factory.mktemp(f"{family}_{unit}"), source(family), unit)
    )


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that is enough for the runs of `pico.RUN`; read only."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{number} and {number * number}; " for number in range(1000)))
    return path


@pytest.fixture
def task(source, database, tmp_path) -> Callable[..., Task]:
    """Family, share, attention unit and search settings -> a task of a comparison."""
    tokens = pico.random_tokens(4, 16, seed=5)

    def make(family: str = "llama_gqa", share: float = 0.5, unit: str = "kv_group", **search) -> Task:
        stream = pico.stream(source(family))
        return Task(
            assembler=Assembler(source(family), database(family, unit)),
            stream=stream,
            teacher=Teacher(tokens, stream.final_hidden(tokens), source(family).head()),
            train=pico.random_tokens(4, 16, seed=6),
            share=share,
            search=SearchConfig(**{**SEARCH, **search}),
            seed=0,
            folder=tmp_path,
            identity={},
        )

    return make
