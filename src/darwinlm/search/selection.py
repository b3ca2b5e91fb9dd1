"""One selection step: every candidate is stitched from the database, trained or refitted briefly, and scored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.cost import trial_memory
from darwinlm.genome import Genome
from darwinlm.refit.blocks import refit_blocks
from darwinlm.refit.store import Refits
from darwinlm.runtime import ranks
from darwinlm.runtime.placement import HOST_SHARE, free_host_memory, free_memory
from darwinlm.search.evolution import Step
from darwinlm.search.fitness import Pools, Targets, Teacher, kls_to_teacher
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


@dataclass(frozen=True)
class _Text:
    """The training text of a generation."""

    generation: int
    pool: Tensor
    """(blocks, T) ids."""
    parts: list[Drawn]
    """Blocks of the pool that a step trains on beyond those of the step before."""
    teacher: Teacher | None
    """The dense model on the pool, where candidates are distilled from it."""


class TrainedFitness:
    """Training-aware fitness (arXiv 2502.07780, section 3.5): KL to the dense model after a short training.

    The training tokens of a generation are one sequence, and every step trains on its beginning. So a survivor that goes
    on where it stopped is the same, to the bit, as one that begins anew from the database; which of the two happens is a
    question of memory.

    Args:
        assembler: builds candidates at their own size.
        pools: what candidates are trained on, and scored on.
        config: training, learning rate, batch, tokens of the steps.
        seed: of the choice of blocks.
        dtype: arithmetic of the forward passes.
        survivor_bytes: memory for what survivors go on from between two steps, on the device and in host memory beside
            it; None for what the training of a candidate leaves free.
    """

    def __init__(
        self,
        assembler: Assembler,
        pools: Pools,
        config: SearchConfig,
        seed: int,
        dtype: torch.dtype,
        survivor_bytes: tuple[int, int] | None = None,
    ) -> None:
        self.assembler, self.pools, self.teacher = assembler, pools, pools.teacher
        self.config, self.seed, self.dtype = config, seed, dtype
        self._room = survivor_bytes if config.continue_training else (0, 0)
        self.weights = {"auto": dtype, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.weights]
        self._ends = sorted({tokens for tokens in config.train_tokens if tokens})
        """Where the training tokens of a generation are cut."""
        self._text = _Text(-1, pools.train[:0], [], None)
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
        refits = self.config.training == "refit"
        if step.stage.train_tokens == 0 or (self.config.learning_rate == 0 and not refits):
            return torch.stack(untrained_kls(self.assembler, step.candidates, targets, self.dtype))
        if step.generation != self._text.generation:
            self._text = self._drawn(step.generation)
            self._survivors, self._known = {}, {}
        found = self._exchanged((self._refitted if refits else self._trained)(step, targets))
        return torch.stack([found[genome] for genome in step.candidates])

    def _trained(self, step: Step, targets: Targets) -> dict[Genome, Tensor]:
        """The parts of the KL of this rank's share."""
        candidates, stage, text = step.candidates, step.stage, self._text
        parts = text.parts[: self._ends.index(stage.train_tokens) + 1]
        if self._room is None:
            self._room = self._spare_memory(candidates)
        share = ranks.broadcast(ranks.share_out([self._costs(genome, parts) for genome in candidates]))
        own = [genome for genome, rank in zip(candidates, share) if rank == ranks.rank()]
        going_on = {genome: self._survivors[genome] for genome in own if genome in self._survivors}
        self._survivors, found = {}, dict[Genome, Tensor]()
        for genome in own:
            trial, seen = self._begun(genome, going_on.pop(genome, None), len(parts))
            for part in parts[seen:]:
                trial.train(text.pool, part, text.teacher)
            found[genome] = kls_to_teacher(trial.model, targets, self.dtype)
            if not step.last:
                self._survivors[genome] = _Survivor(trial, len(parts), found[genome].mean().item())
                self._forget_the_worst(stage.survivors, [survivor.trial for survivor in going_on.values()])
            del trial  # its memory is needed for the next one
        return found

    def _refitted(self, step: Step, targets: Targets) -> dict[Genome, Tensor]:
        """The parts of the KL of this rank's share, after refits that the ranks make together."""
        drawn = [block for part in self._text.parts[: self._ends.index(step.stage.train_tokens) + 1] for block in part]
        length = self._text.pool.shape[1]
        tokens = self._text.pool[[block for block, had in drawn if had == length]]
        found: dict[Genome, Tensor] = {}
        device = self.teacher.head.device
        for index, genome in enumerate(step.candidates):
            refits, kept = Refits(None, {}), partial(self.assembler.mlp_columns, genome)
            pruned = self.assembler.stream(genome, device, self.dtype)
            refit_blocks(refits, self.pools.stream, pruned, kept, tokens, self.config.batch_sequences)
            if index % ranks.world_size() == ranks.rank():
                model = self.assembler.model(genome, device, self.dtype)
                refits.load_into(model)
                found[genome] = kls_to_teacher(model, targets, self.dtype)
        return found

    def _drawn(self, generation: int) -> _Text:
        """What the candidates of a generation are trained on."""
        parts = draw_parts(self.pools.train, self._ends, self.seed, "train", generation)
        if self.config.training != "distillation":
            return _Text(generation, self.pools.train, parts, None)
        blocks = sorted({block for part in parts for block, _ in part})
        place, pool = {block: index for index, block in enumerate(blocks)}, self.pools.train[blocks]
        parts = [[(place[block], length) for block, length in part] for part in parts]
        return _Text(generation, pool, parts, Teacher(pool, self.pools.stream.final_hidden(pool), self.teacher.head))

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
        device, sharers, length = self.teacher.head.device, ranks.local_world_size(), self.pools.train.shape[1]
        needed = max(trial_memory(self.assembler.shape(g), self.config, length, self.weights) for g in candidates)
        here = int(SPARE_SHARE * (free_memory(device, sharers) - needed))
        beside = 0 if device.type == "cpu" else int(HOST_SHARE * free_host_memory()) // sharers
        return max(0, here), beside

    def _exchanged(self, found: dict[Genome, Tensor]) -> dict[Genome, Tensor]:
        """What all ranks found; where survivors lie becomes known."""
        kept = {genome: survivor.parts for genome, survivor in self._survivors.items()}
        everything: dict[Genome, Tensor] = {}
        self._known = {}
        for rank, (theirs, survivors) in enumerate(ranks.all_gather((found, kept))):
            everything |= theirs
            self._known |= {genome: (rank, seen) for genome, seen in survivors.items()}
        return everything
