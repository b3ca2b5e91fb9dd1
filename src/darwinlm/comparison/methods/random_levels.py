"""A random allocation of the same budget of levels, every allocation as likely as any other."""

from __future__ import annotations

import random
from collections.abc import Sequence

from darwinlm.comparison.methods.task import Task
from darwinlm.genome import Genome
from darwinlm.runtime.seeds import python_random


def random_levels(task: Task) -> Genome:
    """A genome drawn from all that have, in each kind, the uniform one's sum of levels."""
    rng, levels = python_random(task.seed, "random levels"), [0] * len(task.space.ladders)
    for kind, total in task.space.targets(task.share).items():
        members = task.space.members(kind)
        drawn = draw_allocation([task.space.ladders[i].top for i in members], total, rng)
        for module, level in zip(members, drawn):
            levels[module] = level
    return tuple(levels)


def draw_allocation(tops: Sequence[int], total: int, rng: random.Random) -> list[int]:
    """Levels from 0 to `tops` that sum to `total`, uniformly among all such lists."""
    ways = [[int(left == 0) for left in range(total + 1)]]  # ways[m][b]: lists of the last m modules that sum to b
    for top in reversed(tops):
        ways.append([sum(ways[-1][max(0, left - top) : left + 1]) for left in range(total + 1)])
    levels: list[int] = []
    for place, top in enumerate(tops):
        left, behind = total - sum(levels), ways[len(tops) - place - 1]
        choices = range(min(top, left) + 1)
        ticket = rng.randrange(sum(behind[left - level] for level in choices))
        for level in choices:
            ticket -= behind[left - level]
            if ticket < 0:
                levels.append(level)
                break
    return levels
