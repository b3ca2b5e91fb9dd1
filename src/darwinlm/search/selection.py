"""One selection step: every candidate is stitched from the database, trained briefly, and scored."""

from __future__ import annotations

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig, Stage
from darwinlm.genome import Genome
from darwinlm.runtime import ranks
from darwinlm.runtime.seeds import torch_generator
from darwinlm.search.fitness import Targets, Teacher, kl_to_teacher
from darwinlm.search.samples import draw
from darwinlm.search.screen import Screen
from darwinlm.search.trial import Trial, checkpoint_activations

Drawn = list[tuple[int, int]]


class TrainedFitness:
    """Training-aware fitness (arXiv 2502.07780, section 3.5): KL to the dense model after a short training.

    Args:
        assembler: builds candidates at their own size.
        train: (blocks, T) pool that candidates are trained on.
        teacher: the dense model on the pool that they are scored on.
        config: learning rate, batch, restart or continued training.
        seed: of the choice of blocks and of the rounding.
        dtype: arithmetic of the forward passes.
    """

    def __init__(
        self, assembler: Assembler, train: Tensor, teacher: Teacher, config: SearchConfig, seed: int, dtype: torch.dtype
    ) -> None:
        self.assembler, self.train, self.teacher = assembler, train, teacher
        self.config, self.seed, self.dtype = config, seed, dtype
        self.weights = {"auto": dtype, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.weights]
        self._trials: dict[tuple[int, Genome], tuple[Trial, int]] = {}
        """Trials of this generation that may go on, and the steps that they have behind them."""

    def __call__(
        self, candidates: list[Genome], parent: Genome, stage: Stage, generation: int, index: int
    ) -> list[float]:
        """The KL of each candidate; all see the same tokens. The ranks share the candidates out and exchange scores."""
        select = draw(self.teacher.tokens, stage.select_tokens, self.seed, "select", generation, index)
        targets = Targets(self.teacher, select)
        own = ranks.mine(candidates)
        if stage.train_tokens == 0 or self.config.learning_rate == 0:
            scores = self._untrained(own, parent, targets)
        else:
            scores = self._trained(own, targets, stage, generation, index)
        return ranks.in_turn(ranks.gathered(scores))

    def _untrained(self, candidates: list[Genome], parent: Genome, targets: Targets) -> list[float]:
        screen = Screen(self.assembler, targets, self.dtype)
        screen.refer(parent)
        return [screen(genome) for genome in candidates]

    def _trained(
        self, candidates: list[Genome], targets: Targets, stage: Stage, generation: int, index: int
    ) -> list[float]:
        going_on = {key: self._trials[key] for genome in candidates if (key := (generation, genome)) in self._trials}
        self._trials = going_on
        scores: list[float] = []
        for genome in candidates:
            trial, behind = self._trials.pop((generation, genome), None) or (self._begin(genome, generation), 0)
            trial.to(self.teacher.head.device)
            for step in range(behind, index + 1) if self.config.continue_training else (index,):
                trial.train(self.train, self._training_blocks(generation, step))
            scores.append(kl_to_teacher(trial.model, targets, self.dtype))
            if self.config.continue_training and index + 1 < len(self.config.stages):
                trial.to(torch.device("cpu"))
                self._trials[generation, genome] = (trial, index + 1)
                self._forget_the_worst(dict(zip(candidates, scores)), generation, stage.survivors)
        return scores

    def _begin(self, genome: Genome, generation: int) -> Trial:
        device = self.teacher.head.device
        model = self.assembler.model(genome, device, self.weights)
        if self.config.gradient_checkpointing:
            checkpoint_activations(model)
        rounding = torch_generator(self.seed, "rounding", generation, device=device)
        return Trial(model, self.config.learning_rate, self.config.batch_sequences, self.dtype, rounding)

    def _training_blocks(self, generation: int, index: int) -> Drawn:
        """What a step trains on: all its tokens, or those that the step before it lacks."""
        tokens = self.config.train_tokens[index]
        if self.config.continue_training and index:
            tokens -= self.config.train_tokens[index - 1]
        return draw(self.train, tokens, self.seed, "train", generation, index)

    def _forget_the_worst(self, scores: dict[Genome, float], generation: int, survivors: int) -> None:
        """Keep only trials that can still survive the step."""
        ranked = sorted((genome for genome in scores if (generation, genome) in self._trials), key=lambda g: scores[g])
        for genome in ranked[survivors:]:
            del self._trials[generation, genome]
