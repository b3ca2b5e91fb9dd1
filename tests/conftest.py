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
from darwinlm.database.store import Database
from darwinlm.models.source import ModelSource

torch.set_num_threads(1)
logging.disable_progress_bar()
hypothesis.settings.register_profile("pico", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("pico")


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
