"""Every module at the same share of its width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darwinlm.genome import Genome, Space, uniform_genome
from darwinlm.runtime.seeds import python_random

if TYPE_CHECKING:
    from darwinlm.baselines.task import Task


def uniform(space: Space, share: float, seed: int = 0) -> Genome:
    """The uniform genome at `share`; where that is no whole level, a random one of that mean."""
    return uniform_genome(space, share, python_random(seed, "start"))


def uniform_levels(task: Task) -> Genome:
    """The same as a method."""
    return task.uniform
