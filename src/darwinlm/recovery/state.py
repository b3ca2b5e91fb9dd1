"""The state of a training that goes on after a kill: weights, moments, schedule, place in the text; whole or not there.

state-STEP/weights.safetensors    trained weights and AdamW's moments by name, float32
state-STEP/facts.json             the optimizer's plain numbers, the schedule, the bookmark
state-STEP/trainer_state.json     what transformers.Trainer counts

A state does not depend on the number of ranks. The newest one is whole: it is written beside, flushed, then renamed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from darwinlm.data.stream import Bookmark
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.runtime import ranks
from darwinlm.runtime.files import flush, read_json, read_tensors, write_json, write_tensors

_WEIGHTS, _MOMENTS = "weights.", "moments."
_OF_STUDENT = "student."
_WHOLE: dict[str, Any] = {"full_state_dict": True, "cpu_offload": True, "ignore_frozen_params": True}


def saved_weights(state: Path) -> dict[str, Tensor]:
    """{name in the student: tensor, float32} of what was trained.

    Raises:
        DamagedFileError: the state is not whole.
    """
    tensors, _ = read_tensors(state / "weights.safetensors")
    prefix = _WEIGHTS + _OF_STUDENT
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    bookmark: Bookmark,
    counts: Any,
) -> None:
    """Write the state after a step; older ones go.

    Args:
        folder: where states lie.
        step: finished optimizer steps.
        model: as it is wrapped.
        optimizer: of it.
        schedule: of the learning rate.
        bookmark: where the reading is.
        counts: transformers' TrainerState.

    Raises:
        RequestError: a weight is not finite.
    """
    weights, found = get_state_dict(model, optimizer, options=StateDictOptions(**_WHOLE))
    moments: Any = found
    if ranks.is_first():
        partial = folder / ".state.partial"
        shutil.rmtree(partial, ignore_errors=True)
        trained = [name for group in moments["param_groups"] for name in group["params"]]  # tied weights have one name
        tensors: dict[str, Any] = {_WEIGHTS + name: weights[name] for name in trained}
        if broken := [
            name.removeprefix(_WEIGHTS + _OF_STUDENT) for name, t in tensors.items() if not t.isfinite().all()
        ]:
            raise RequestError(
                f"After step {step}, {len(broken)} of {len(trained)} trained weights hold NaN or Inf, {broken[0]} first; the state "
                "before that is kept. Lower train.learning_rate, raise train.warmup_steps, or use --dtype float32."
            )
        for name, values in moments["state"].items():
            tensors |= {f"{_MOMENTS}{kind}.{name}": value for kind, value in values.items()}
        write_tensors(partial / "weights.safetensors", tensors)
        facts = {
            "groups": moments["param_groups"],
            "schedule": schedule.state_dict(),
            "bookmark": dataclasses.asdict(bookmark),
        }
        write_json(partial / "facts.json", facts)
        counts.save_to_json(str(partial / "trainer_state.json"))
        flush(partial / "trainer_state.json")
        flush(partial)
        os.replace(partial, folder / f"state-{step}")
        flush(folder)
        for older in states(folder)[:-1]:
            shutil.rmtree(older)
    ranks.barrier()


def states(folder: Path) -> list[Path]:
    """The states that lie in a folder, oldest first."""
    return sorted(folder.glob("state-*"), key=step_of)


def step_of(state: Path | None) -> int:
    """Finished optimizer steps of a state; 0 of none."""
    return int(state.name.split("-")[1]) if state else 0


def load_state(state: Path, model: nn.Module, optimizer: Optimizer, schedule: LambdaLR) -> None:
    """Put a saved state into a model, its optimizer and its schedule, as they are wrapped; the learning rate is that of the
    schedule as it is asked now, which may be longer than the one that was saved.

    Raises:
        DamagedFileError: it is not whole.
    """
    tensors, _ = read_tensors(state / "weights.safetensors")
    facts = read_json(state / "facts.json")
    weights: dict[str, Any] = {
        name.removeprefix(_WEIGHTS): value for name, value in tensors.items() if name.startswith(_WEIGHTS)
    }
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_MOMENTS):
            kind, name = key.removeprefix(_MOMENTS).split(".", 1)
            moments.setdefault(name, {})[kind] = value
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict={"state": moments, "param_groups": facts["groups"]},  # type: ignore[arg-type]
        options=StateDictOptions(**_WHOLE, strict=False),
    )
    schedule.load_state_dict(facts["schedule"])
    for group, base, share in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * share(schedule.last_epoch)


def bookmark_of(state: Path) -> Bookmark:
    """Where the reading of a state is.

    Raises:
        DamagedFileError: it counts otherwise.
    """
    stored = read_json(state / "facts.json")["bookmark"]
    if "block" not in stored:
        raise DamagedFileError(f"'{state}' was left by another version of DarwinLM. Choose another --output.")
    return Bookmark(**stored)
