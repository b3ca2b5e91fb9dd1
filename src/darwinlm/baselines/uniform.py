"""Every module at the same share of its width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darwinlm.genome import Genome, Space, grown_genome, uniform_genome
from darwinlm.runtime.seeds import python_random

if TYPE_CHECKING:
    from darwinlm.baselines.task import Task


def uniform(space: Space, share: float, seed: int = 0) -> Genome:
    """The uniform genome at `share`; where that is no whole level, a random one of that mean.

    Of a model that is pruned already: where it is now, with what it lacks to `share` spread at random positions.
    """
    begin = grown_genome if any(space.present) else uniform_genome
    return begin(space, share, python_random(seed, "start"))


def uniform_levels(task: Task) -> Genome:
    """The same as a method."""
    return task.uniform
