"""One selection step: every candidate is stitched from the database, trained briefly, and scored."""

from __future__ import annotations

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig, Stage
from darwinlm.genome import Genome
from darwinlm.runtime import ranks
from darwinlm.search.fitness import Teacher, kl_to_teacher
from darwinlm.search.samples import draw
from darwinlm.search.trial import train_briefly


class TrainedFitness:
    """Training-aware fitness (arXiv 2502.07780, section 3.5): KL to the dense model after a short training.

    Args:
        assembler: builds candidates at their own size.
        train: (blocks, T) pool that candidates are trained on.
        teacher: the dense model on the pool that they are scored on.
        config: learning rate and batch.
        seed: of the choice of blocks.
        dtype: arithmetic of the forward passes.
    """

    def __init__(
        self, assembler: Assembler, train: Tensor, teacher: Teacher, config: SearchConfig, seed: int, dtype: torch.dtype
    ) -> None:
        self.assembler, self.train, self.teacher = assembler, train, teacher
        self.config, self.seed, self.dtype = config, seed, dtype

    def __call__(self, candidates: list[Genome], stage: Stage, generation: int, index: int) -> list[float]:
        """The KL of each candidate; all see the same tokens. The ranks share the candidates out and exchange scores."""
        train = draw(self.train, stage.train_tokens, self.seed, "train", generation, index)
        select = draw(self.teacher.tokens, stage.select_tokens, self.seed, "select", generation, index)
        scores = []
        for genome in ranks.mine(candidates):
            model = self.assembler.model(genome, self.teacher.head.device)
            train_briefly(model, self.train, train, self.config.learning_rate, self.config.batch_sequences, self.dtype)
            scores.append(kl_to_teacher(model, self.teacher, select, self.dtype))
        return ranks.in_turn(ranks.gathered(scores))
