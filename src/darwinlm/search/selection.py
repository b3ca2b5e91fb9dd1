"""One selection step: every candidate is stitched from the database, trained briefly, and scored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.cost import trial_memory
from darwinlm.genome import Genome
from darwinlm.runtime import ranks
from darwinlm.runtime.placement import HOST_SHARE, free_host_memory, free_memory
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Targets, Teacher, kls_to_teacher
from darwinlm.search.samples import Drawn, draw, draw_parts
from darwinlm.search.screen import untrained_kls
from darwinlm.search.trial import Trial, checkpoint_activations

SPARE_SHARE = 0.9
"""Share of the free memory of a device that survivors may take: the rest is lost between blocks."""


@dataclass(frozen=True)
class _Survivor:
    """A candidate between two selection steps, as the first of them left it."""

    trial: Trial
    parts: int
    """Parts of the generation's training tokens that it has seen."""
    score: float


class TrainedFitness:
    """Training-aware fitness (arXiv 2502.07780, section 3.5): KL to the dense model after a short training.

    The training tokens of a generation are one sequence, and every step trains on its beginning. So a survivor that goes
    on where it stopped is the same, to the bit, as one that begins anew from the database; which of the two happens is a
    question of memory.

    Args:
        assembler: builds candidates at their own size.
        train: (blocks, T) pool that candidates are trained on.
        teacher: the dense model on the pool that they are scored on.
        config: learning rate, batch, tokens of the steps.
        seed: of the choice of blocks.
        dtype: arithmetic of the forward passes.
        survivor_bytes: memory for what survivors go on from between two steps, on the device and in host memory beside
            it; None for what the training of a candidate leaves free.
    """

    def __init__(
        self,
        assembler: Assembler,
        train: Tensor,
        teacher: Teacher,
        config: SearchConfig,
        seed: int,
        dtype: torch.dtype,
        survivor_bytes: tuple[int, int] | None = None,
    ) -> None:
        self.assembler, self.train, self.teacher = assembler, train, teacher
        self.config, self.seed, self.dtype = config, seed, dtype
        self._room = survivor_bytes if config.continue_training else (0, 0)
        self.weights = {"auto": dtype, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.weights]
        self._ends = sorted({tokens for tokens in config.train_tokens if tokens})
        """Where the training tokens of a generation are cut."""
        self._generation = -1
        self._survivors: dict[Genome, _Survivor] = {}
        self._known: dict[Genome, tuple[int, int]] = {}
        """Of the survivors of all ranks: where each lies, and the parts that it has seen."""

    def __call__(self, step: Step) -> Tensor:
        """(candidates, sequences) parts of each one's KL; all see the same tokens, and the ranks share them out."""
        if not step.candidates:  # a space too small for children
            return torch.empty(0, 0)
        tokens, asked = (
            self.teacher.tokens,
            (step.stage.select_tokens, self.seed, "select", step.generation, step.index),
        )
        targets = Targets(self.teacher, draw(tokens, *asked, self.config.sequence_tokens))
        if step.stage.train_tokens == 0 or self.config.learning_rate == 0:
            return torch.stack(untrained_kls(self.assembler, step.candidates, targets, self.dtype))
        found = self._exchanged(self._trained(step, targets))
        return torch.stack([found[genome] for genome in step.candidates])

    def _trained(self, step: Step, targets: Targets) -> dict[Genome, Tensor]:
        """The parts of the KL of this rank's share."""
        candidates, stage = step.candidates, step.stage
        if step.generation != self._generation:
            self._generation, self._survivors, self._known = step.generation, {}, {}
        parts = draw_parts(self.train, self._ends, self.seed, "train", step.generation)
        parts = parts[: self._ends.index(stage.train_tokens) + 1]
        if self._room is None:
            self._room = self._spare_memory(candidates)
        share = ranks.told_by_first(ranks.share_out([self._costs(genome, parts) for genome in candidates]))
        own = [genome for genome, rank in zip(candidates, share) if rank == ranks.rank()]
        going_on = {genome: self._survivors[genome] for genome in own if genome in self._survivors}
        self._survivors, found = {}, dict[Genome, Tensor]()
        for genome in own:
            trial, seen = self._begun(genome, going_on.pop(genome, None), len(parts))
            for part in parts[seen:]:
                trial.train(self.train, part)
            found[genome] = kls_to_teacher(trial.model, targets, self.dtype)
            if not step.last:
                self._survivors[genome] = _Survivor(trial, len(parts), found[genome].mean().item())
                self._forget_the_worst(stage.survivors, [survivor.trial for survivor in going_on.values()])
            del trial  # its memory is needed for the next one
        return found

    def _costs(self, genome: Genome, parts: list[Drawn]) -> list[int]:
        """Tokens that a candidate must still be trained on, by rank."""
        tokens = [sum(length for _, length in part) for part in parts]
        lies, seen = self._known.get(genome, (0, 0))
        left = sum(tokens[seen:]) if seen <= len(parts) else sum(tokens)
        return [left if rank == lies else sum(tokens) for rank in range(ranks.world_size())]

    def _begun(self, genome: Genome, survivor: _Survivor | None, parts: int) -> tuple[Trial, int]:
        """A candidate to be trained, and the parts that it has seen."""
        if survivor and survivor.parts <= parts:
            survivor.trial.come_back()
            return survivor.trial, survivor.parts
        device = self.teacher.head.device
        model = self.assembler.model(genome, device, self.weights)
        if self.config.gradient_checkpointing:
            checkpoint_activations(model)
        return Trial(model, self.config.learning_rate, self.config.batch_sequences, self.dtype), 0

    def _forget_the_worst(self, most: int, others: list[Trial]) -> None:
        """Keep those alone that can still survive the step and have room, beside `others` that wait for their turn."""
        best = sorted(self._survivors.items(), key=lambda item: item[1].score)
        self._survivors = {}
        here, beside = self._room or (0, 0)
        here -= sum(trial.bytes for trial in others if not trial.waits)
        beside -= sum(trial.bytes for trial in others if trial.waits)
        for genome, survivor in best[:most]:
            size, waits = survivor.trial.bytes, survivor.trial.waits
            if size <= here and not waits:
                here -= size
            elif size <= beside:
                survivor.trial.wait()
                beside -= size
            else:
                continue
            self._survivors[genome] = survivor

    def _spare_memory(self, candidates: list[Genome]) -> tuple[int, int]:
        """Bytes for survivors: most of what the training of the largest candidate leaves free, and of the host's beside."""
        device, sharers, length = self.teacher.head.device, ranks.local_world_size(), self.train.shape[1]
        needed = max(trial_memory(self.assembler.shape(g), self.config, length, self.weights) for g in candidates)
        here = int(SPARE_SHARE * (free_memory(device, sharers) - needed))
        beside = 0 if device.type == "cpu" else int(HOST_SHARE * free_host_memory()) // sharers
        return max(0, here), beside

    def _exchanged(self, found: dict[Genome, Tensor]) -> dict[Genome, Tensor]:
        """What all ranks found; where survivors lie becomes known."""
        kept = {genome: survivor.parts for genome, survivor in self._survivors.items()}
        everything: dict[Genome, Tensor] = {}
        self._known = {}
        for rank, (theirs, survivors) in enumerate(ranks.gathered((found, kept))):
            everything |= theirs
            self._known |= {genome: (rank, seen) for genome, seen in survivors.items()}
        return everything
