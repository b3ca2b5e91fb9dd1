"""Where a search begins: allocations that a backward pass proposes and the real KL decides between.

Round by round: the costs of all levels are linearized where the best genome stands, exact allocations are proposed from
them, near and far, and scored on tokens that the costs have not seen. Every score corrects the costs, which then propose
again. The first round linearizes the dense model, where single modules are told apart best; later ones what was found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from darwinlm.assemble import Assembler
from darwinlm.config import SearchConfig
from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome, Space, is_valid
from darwinlm.runtime import ranks
from darwinlm.runtime.files import read_json, write_json
from darwinlm.runtime.progress import log
from darwinlm.runtime.seeds import torch_generator
from darwinlm.search.fitness import Pools, Targets
from darwinlm.search.linearize import linearize
from darwinlm.search.propose import FORBIDDEN, Estimate, proposals
from darwinlm.search.samples import draw
from darwinlm.search.screen import untrained_kls
from darwinlm.target.budget import Budget

GAIN = 0.003
"""Share of the KL that a round must win for another one to follow."""
CORRECTIONS = 3
"""Times that the scores of a round may correct its costs."""
HEAT_SEQUENCES = 8
"""Least sequences that tell who leaves a race."""
BEHIND = 2.0
"""Standard errors of the paired difference to the best by which a genome must be behind to leave it."""
_TITLE = "Start, proposals"


class StartRecord:
    """`start.json`: all scores and costs of a start, so that a killed one goes on with what it knows, and how it went.

    Args:
        file: where it lies.
        space: the modules.
        identity: the settings that it belongs to.
        check: scores of a genome on held-out text, for the eye alone.
    """

    def __init__(
        self,
        file: Path,
        space: Space,
        identity: dict[str, Any],
        check: Callable[[Genome], dict[str, float]] | None = None,
    ) -> None:
        self.file, self.space, self.identity, self.check = file, space, identity, check
        self.scores: dict[Genome, float] = {}
        self.estimates: list[Estimate] = []
        """Of the rounds that were begun."""
        self.rounds: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def load(self) -> dict[Genome, float]:
        """The scores that are known; none where the start has not begun, or another one did."""
        saved = ranks.broadcast(read_json(self.file) if ranks.is_first() and self.file.exists() else {})
        if saved.get("identity") != self.identity:
            return {}
        try:
            self.scores = {tuple(map(int, genome)): float(kl) for genome, kl in saved["scores"]}
            if not all(is_valid(self.space, genome) for genome in self.scores):
                raise ValueError("a level is on no ladder")
            self.estimates = [self._estimate(**one) for one in saved.get("estimates", [])]
        except (KeyError, TypeError, ValueError) as fault:
            raise DamagedFileError(
                f"'{self.file}' is damaged ({fault}). Run the search again with --restart."
            ) from fault
        return dict(self.scores)

    def add(self, scores: dict[Genome, float]) -> None:
        """Keep scores."""
        self.scores.update(scores)
        self._save()

    def estimate(self, round_: int, genome: Genome, linearized: Callable[[], Estimate]) -> Estimate:
        """The costs of a round that begins at a genome: those that are known, or new ones, which are kept."""
        if round_ >= len(self.estimates) or self.estimates[round_].genome != genome:
            self.estimates[round_:] = [linearized()]
            self._save()
        return self.estimates[round_]

    def _estimate(self, genome: list[int], kl: float, **tables: list[list[float | None]]) -> Estimate:
        costs, doubts = (
            [[FORBIDDEN if cost is None else float(cost) for cost in row] for row in tables[name]]
            for name in ("costs", "doubts")
        )
        if any(
            [len(row) for row in table] != [ladder.top + 1 for ladder in self.space.ladders]
            for table in (costs, doubts)
        ):
            raise ValueError("costs of other levels")
        return Estimate(tuple(genome), kl, costs, doubts)

    def end_round(self, best: Genome, kl: float, genomes: int) -> None:
        """Keep what a round ended with."""
        self.rounds.append({"kl": kl, "genomes": genomes, **self._of(best)})
        self._save()

    def end(self, how: str, genome: Genome) -> None:
        """Keep what the start ended with, found by one way or another."""
        self._save(start=how, **self._of(genome))

    def _of(self, genome: Genome) -> dict[str, Any]:
        held_out = {"held_out": self.check(genome)} if self.check and ranks.is_first() else {}
        seconds = round(time.perf_counter() - self._began, 3)
        return {"seconds": seconds, **held_out, "levels": self.space.named(genome)}

    def _save(self, **end: Any) -> None:
        if ranks.is_first():
            scores = [[list(genome), kl] for genome, kl in self.scores.items()]
            found = {"rounds": self.rounds, "scores": scores, "estimates": list(map(_plain, self.estimates))}
            write_json(self.file, {**end, "identity": self.identity, **found})


def _plain(estimate: Estimate) -> dict[str, Any]:
    tables = {
        name: [[None if cost == FORBIDDEN else cost for cost in row] for row in table]
        for name, table in (("costs", estimate.costs), ("doubts", estimate.doubts))
    }
    return {"genome": list(estimate.genome), "kl": estimate.kl, **tables}


def linearized_start(
    uniform: Genome, dense: Genome, budget: Budget, measures: ModelMeasures, rounds: int, record: StartRecord
) -> Genome:
    """The best genome found, by its KL; never worse than the uniform one.

    Args:
        uniform: within the budget.
        dense: the model as it is.
        budget: that every genome keeps.
        measures: linearize, and score.
        rounds: most rounds.
        record: keeps scores and costs.
    """
    known, scores = record.load(), dict[Genome, float]()

    def score(genomes: list[Genome]) -> None:
        new = [genome for genome in genomes if genome not in known]
        if new:
            found = dict(zip(new, ranks.broadcast(measures.kls(new))))
            known.update(found)
            record.add(found)
        scores.update((genome, known[genome]) for genome in genomes)

    score([uniform])
    best = uniform
    record.end_round(best, scores[best], len(scores))
    for round_ in range(rounds):
        before, at = scores[best], best if round_ else dense
        estimate = record.estimate(round_, at, partial(measures.estimate, at, scores.get(at, 0.0), round_))
        for correction in range(1 + CORRECTIONS * (round_ > 0)):
            corrected = estimate.corrected(scores) if round_ else estimate
            new = [genome for genome in ranks.broadcast(proposals(corrected, budget)) if genome not in scores]
            lowest = min(scores.values())
            score(new)
            if not new or (correction and min(scores.values()) >= lowest):
                break
        best = min(scores, key=lambda genome: (scores[genome], genome))
        record.end_round(best, scores[best], len(scores))
        log.info("Start, round %d: KL %.4f, the best of %d genomes.", round_ + 1, scores[best], len(scores))
        if round_ and scores[best] > (1 - GAIN) * before:
            break
    return best


@dataclass
class ModelMeasures:
    """A start's measures on real blocks.

    Args:
        assembler: gives the layers of candidates.
        pools: the model that is pruned; what costs are linearized on, and what genomes are scored on.
        config: of the search.
        seed: of the choice of blocks, and of sampled labels.
    """

    assembler: Assembler
    pools: Pools
    config: SearchConfig
    seed: int

    def __post_init__(self) -> None:
        asked, length, train = self.config.start_tokens, self.config.sequence_tokens, self.pools.train
        pools = ((self.pools.teacher.tokens, "start"), (train, "linearize"))
        scored, passed = (draw(p, min(asked, p.numel()), self.seed, purpose, 0, 0, length) for p, purpose in pools)
        heat = len(scored) // 4 if len(scored) >= 4 * HEAT_SEQUENCES else len(scored)
        self._targets = [Targets(self.pools.teacher, part) for part in (scored[:heat], scored[heat:]) if part]
        self._tokens = torch.stack([train[block, :had] for block, had in passed if had == passed[0][1]])
        self._dense: torch.Tensor | None = None

    def estimate(self, genome: Genome, kl: float, round_: int) -> Estimate:
        """By one forward and one backward pass."""
        stream = self.pools.stream
        is_dense = genome == self.assembler.space.present and self.assembler.embedded is stream.source
        if not is_dense and self._dense is None:
            self._dense = stream.final_hidden(self._tokens)
        labels = torch_generator(self.seed, "labels", round_)
        dense = None if is_dense else self._dense
        found = linearize(self.assembler, stream, genome, self._tokens, labels, dense=dense)
        return Estimate(genome, kl, ranks.broadcast(found.costs), ranks.broadcast(found.doubts))

    def kls(self, genomes: list[Genome]) -> list[float]:
        """On `search.start_tokens` of the blocks that candidates are scored on, as a race.

        All are scored on a quarter of them. Whoever is behind the best by more than two standard errors of the paired
        difference stops there, and is told by how far that was: the best one's KL on all of them and the difference.
        """
        heat, *rest = self._targets
        kls = torch.stack(untrained_kls(self.assembler, genomes, heat, self.pools.stream.dtype, _TITLE))
        found = kls.mean(1)
        if not rest:
            return found.tolist()
        leader = int(found.argmin())
        behind = kls - kls[leader]
        errors = behind.std(1) / math.sqrt(kls.shape[1])
        going = ranks.broadcast([i for i, d in enumerate(behind.mean(1)) if d <= BEHIND * errors[i]])
        there = [genomes[i] for i in going]
        ends = torch.stack(untrained_kls(self.assembler, there, rest[0], self.pools.stream.dtype, _TITLE)).mean(1)
        share = heat.count / (heat.count + rest[0].count)
        found[going] = share * found[going] + (1 - share) * ends
        out = [i for i in range(len(genomes)) if i not in going]
        found[out] = found[leader] + behind[out].mean(1)
        return found.tolist()
