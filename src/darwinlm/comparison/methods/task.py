"""What every method is asked: a genome of one model within one budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig, ShearedConfig, TargetConfig
from darwinlm.genome import Genome, Space
from darwinlm.models.blocks import BlockStream
from darwinlm.runtime.seeds import python_random
from darwinlm.runtime.timings import Timings
from darwinlm.search.fitness import Targets, Teacher
from darwinlm.search.record import SearchRecord
from darwinlm.search.samples import draw
from darwinlm.target.budget import Budget, level_budget, uniform
from darwinlm.target.target import Target

T = TypeVar("T")
BORROWED = "borrowed"
"""Stage of a method's timings: work that another one had done, and this one used."""


@dataclass(frozen=True)
class Task:
    """A model to be pruned, the text to do it by, and what may be left of it."""

    assembler: Assembler
    """The dense model and the levels of its modules."""
    stream: BlockStream
    """The dense model, block by block."""
    teacher: Teacher
    """The dense model on the blocks that scores are measured on."""
    train: Tensor
    """(blocks, T) pool that candidates are trained on."""
    share: float
    """Part of every kind of module that is to go."""
    search: SearchConfig
    seed: int
    folder: Path
    """Where a search keeps its state, so that it can be continued."""
    identity: dict[str, Any]
    """The settings that the answer depends on."""
    sheared: ShearedConfig = field(default_factory=ShearedConfig)
    """Of the method of that name alone."""
    memory: Budget | None = None
    """Bytes of the file, where modules have formats; `share` counts nothing then."""
    plain: Assembler | None = None
    """The same levels without formats, where modules have some."""
    found: dict[tuple[str, float | None, int], tuple[Any, float]] = field(default_factory=dict)
    """What methods of the comparison have in common, by name, share (None: of any) and seed, and the seconds it took."""

    @property
    def space(self) -> Space:
        """The modules and their ladders."""
        return self.assembler.space

    @property
    def uniform(self) -> Genome:
        """Every module at the share, or a random genome of that mean where it is no whole level."""
        return uniform_at(self.space, self.share, self.seed)

    @property
    def budget(self) -> int:
        """Parameters that may be left: those of the uniform model."""
        return self.budget_of(self.assembler, self.share, self.seed)

    @staticmethod
    def budget_of(assembler: Assembler, share: float, seed: int) -> int:
        """Parameters of the uniform model at a share."""
        return assembler.shape(uniform_at(assembler.space, share, seed)).parameters

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the forward passes."""
        return self.stream.dtype

    @property
    def timings(self) -> Timings:
        """What finding the answer has taken so far."""
        return Timings(self.folder / "timings.json")

    def parameters(self, genome: Genome) -> int:
        """Parameters of a genome's whole model."""
        return self.assembler.shape(genome).parameters

    def targets(self) -> Targets:
        """The dense model on `search.start_tokens` of the blocks: what single scores are measured on."""
        tokens = self.teacher.tokens
        wanted = min(self.search.start_tokens, tokens.numel())
        return Targets(self.teacher, draw(tokens, wanted, self.seed, "start", 0, 0))

    def parameter_limit(self, assembler: Assembler | None = None, shape: Literal["free", "stock"] = "free") -> Budget:
        """The budget as a limit on every genome, with the exact widths of all levels.

        Args:
            assembler: whose levels they are; by default the task's.
            shape: that every genome has.
        """
        source, target = self.assembler.source, TargetConfig(level=None, parameters=str(self.budget), shape=shape)
        limits = Target(target, None, source.shape, self.space, source.dtype.itemsize)
        return limits.budget((assembler or self.assembler).module_widths)

    def memory_limit(self) -> Budget:
        """The bytes of the file as a limit on every genome."""
        if self.memory is None:
            raise ValueError("a comparison without formats counts no bytes")
        return self.memory

    def level_limits(self) -> Budget:
        """The share of every kind of module as limits on every genome."""
        return level_budget(self.space, self.share)

    def once(self, name: str, make: Callable[[], T], *, any_share: bool = False) -> T:
        """What several methods need, made by the first of them; its seconds count in each.

        Args:
            name: of it.
            make: makes it, from this task alone.
            any_share: whether it is the same at every share.
        """
        key = (name, None if any_share else self.share, self.seed)
        if key in self.found:
            value, seconds = self.found[key]
            self.timings.add(BORROWED, seconds)
            return value
        began = time.perf_counter()
        value = make()
        self.found[key] = (value, time.perf_counter() - began)
        return value

    def record(self, space: Space) -> SearchRecord:
        """The search of this task on disk.

        Args:
            space: what it searches.
        """
        return SearchRecord(self.folder / "search", self.identity, space)


def uniform_at(space: Space, share: float, seed: int) -> Genome:
    """Every module at a share, or a random genome of that mean where it is no whole level."""
    return uniform(level_budget(space, share), python_random(seed, "start"))
