"""Every module at the same share of its width."""

from __future__ import annotations

from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome


def uniform_levels(task: Task) -> Genome:
    """What every other method is compared with."""
    return task.uniform
