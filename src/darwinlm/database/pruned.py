"""All levels of one module from its Hessian: how much it is damped, and in which precision.

Letters: P = parts of the calibration, E = experts, I = columns of an expert as it is now, R = out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from darwinlm.database.damping import DAMPINGS, MORE, USUAL, attempts, best, held_out_errors
from darwinlm.database.experts import Order, expert_levels
from darwinlm.database.hessians import damp, drop_dead_columns
from darwinlm.database.levels import Ladder
from darwinlm.database.obs import PrunedLevel, prune_groups
from darwinlm.errors import CalibrationError
from darwinlm.runtime.progress import log

Damping = float | Literal["auto"]
Pruned = tuple[list[PrunedLevel], dict[str, Any]]
"""The open levels, and facts of the record."""


def pruned(
    ladder: Ladder,
    weight: Tensor,
    parts: Tensor,
    rel_damp: Damping,
    dtype: torch.dtype,
    *,
    scarcity: float = 1.0,
    dampings: Sequence[float] = DAMPINGS,
) -> Pruned:
    """Choose the damping and prune: in float64 where float32 cannot, damped more where that cannot either.

    Args:
        ladder: of the module.
        weight: (R, C), float32.
        parts: (P, C, C), undamped; overwritten.
        rel_damp: as asked for.
        dtype: of a stored weight.
        scarcity: columns for each token that there is, where these are more; dampings that no token chooses grow with it.
        dampings: to choose from.
    """
    choice = _errors(ladder, weight, parts, dampings)
    asked = best(choice, min(1.0, USUAL * scarcity)) if rel_damp == "auto" else min(1.0, rel_damp * scarcity)
    hessian = parts[0].add_(parts[1]) if len(parts) > 1 else parts[0]
    weight, dead = drop_dead_columns(weight, hessian)
    undamped, fault = hessian.diagonal().clone(), None
    for tried, precision in attempts(asked):
        hessian.diagonal().copy_(undamped)
        matrix = hessian.to(precision)
        damping = damp(matrix, tried, ladder.name)
        try:
            levels = [
                replace(level, weight=level.weight.to("cpu", dtype))
                for level in prune_groups(
                    weight, matrix, group_size=ladder.group_size, counts=ladder.open_counts, rounds=ladder.rounds
                )
            ]
        except CalibrationError as cause:
            fault = cause
            continue
        _tell(ladder.name, dead, tried, precision, asked)
        name = str(precision).removeprefix("torch.")
        facts = {"rel_damp": tried, "precision": name, "held_out_errors": choice}
        return levels, {**facts, "damping": damping, "dead_columns": dead}
    raise CalibrationError(f"{ladder.name}, in float64 and with a relative damping of {tried:g}: {fault}") from fault


def mixture_pruned(
    ladder: Ladder,
    weight: Tensor,
    parts: Tensor,
    order: Order,
    tokens: Tensor,
    rel_damp: Damping,
    dtype: torch.dtype,
) -> Pruned:
    """The levels of a mixture of experts: each expert at every width by its own Hessian, one after the other.

    Args:
        ladder: with rungs.
        weight: (R, E I), float32.
        parts: (P, E, I, I), undamped, of the tokens that take an expert, weighted by the router; overwritten.
        order: in which experts leave.
        tokens: (E,): how many of them there are.
        rel_damp: as asked for.
        dtype: of a stored weight.
    """
    width = ladder.columns // ladder.experts
    widths = sorted({wide for _, wide in ladder.rungs[ladder.present :]}, reverse=True)
    removed, found = tuple(width - wide for wide in widths), []
    rare = {str(expert): count for expert, count in enumerate(tokens.tolist()) if count < width}
    _tell_of_rare(ladder.name, rare, width)
    for expert, own in enumerate(weight.chunk(ladder.experts, 1)):
        name = f"{ladder.name}.experts.{expert}"
        one = replace(ladder, name=name, columns=width, removed=removed, rungs=(), present=0)
        scarcity = max(1.0, width / max(1, int(tokens[expert])))
        found.append(
            pruned(one, own, parts[:, expert], rel_damp, dtype, scarcity=scarcity, dampings=(*MORE, *DAMPINGS))
        )
    facts = [each for _, each in found]
    return expert_levels([own for own, _ in found], widths, order, ladder), {
        "damping": sum(each["damping"] for each in facts) / len(facts),
        "dead_columns": sum(each["dead_columns"] for each in facts),
        "rel_damp": max(each["rel_damp"] for each in facts),
        "precision": max(each["precision"] for each in facts),
        "orders": dict(order.errors),
        "rare": rare,
    }


def _errors(ladder: Ladder, weight: Tensor, parts: Tensor, dampings: Sequence[float]) -> dict[str, float]:
    """By damping, at the middle level; empty where nothing was held back, or no level lies between dense and gone."""
    if len(parts) == 1 or not ladder.between or not parts[1].any():
        return {}
    removed = ladder.between[len(ladder.between) // 2]
    return held_out_errors(weight, parts[0], parts[1], ladder.group_size, removed, dampings)


def _tell_of_rare(name: str, rare: dict[str, int], width: int) -> None:
    if rare:
        log.warning(
            "%s: fewer tokens than columns (%d) take %s, whose Hessians are damped the more. Calibrate on more tokens "
            "(blocks.hessian).",
            name,
            width,
            ", ".join(f"expert {expert} ({count})" for expert, count in rare.items()),
        )


def _tell(name: str, dead: int, rel_damp: float, precision: torch.dtype, asked: float) -> None:
    if dead:
        log.info("%s: %d columns were never active; they leave first.", name, dead)
    if rel_damp != asked:
        log.warning("%s: damped by %g instead of %g, where float64 cannot factor its Hessian.", name, rel_damp, asked)
    elif precision == torch.float64:
        log.info("%s: pruned in float64; float32 cannot factor its Hessian.", name)
