"""What is asked of a pruned model: which of the target's settings count, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from darwinlm.config.quantities import Quantity, Unit, quantity
from darwinlm.config.settings import PackedFormat, TargetConfig

HARD: tuple[Unit, ...] = ("parameters", "memory", "speedup")
"""Targets that are not counted in levels."""
ROUNDED = "in second order, values by attention"
"""How matrices in formats are: what was searched or refitted with others is another thing."""
_ASKS = ("level", *HARD)
_UNITS = {"parameters": "parameters", "memory": "bytes"}


def latest_target(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers of settings, of which the first names a target; the last that does takes the place of what lower ones ask.

    So a target that is typed does not have to hold beside the one of a preset, or of the run that lies there.
    """
    found = [dict(layer) for layer in layers]
    last = max(place for place, layer in enumerate(layers) if asks(layer))
    for layer in found[:last]:
        if isinstance(layer.get("target"), Mapping):
            layer["target"] = {key: value for key, value in layer["target"].items() if key not in _ASKS}
    found[last]["target"] = {**dict.fromkeys(_ASKS), **found[last]["target"]}
    return found


def asks(layer: Mapping[str, Any]) -> list[str]:
    """What a layer of settings asks of a target: level, parameters, memory, speedup."""
    target = layer.get("target")
    return [name for name in _ASKS if target.get(name) is not None] if isinstance(target, Mapping) else []


def asked_quantities(target: TargetConfig) -> dict[Unit, Quantity]:
    """The hard targets that are asked.

    Raises:
        ValueError: one cannot be read.
    """
    return {name: quantity(typed, name) for name in HARD if (typed := getattr(target, name)) is not None}


def target_violations(target: TargetConfig, levels: int) -> list[str]:
    """What is wrong with a target by itself.

    Args:
        target: what is asked.
        levels: `database.levels`.
    """
    found = []
    if target.level is not None and not 0 < target.level < levels:
        found.append(
            f"target.level is {target.level:g}; it must lie between 0 (dense) and {levels} (nothing left), both excluded."
        )
    if target.level is None and not written(target):
        found.append(
            "Nothing is asked of the pruned model: give one of " + ", ".join(f"target.{a}" for a in _ASKS) + "."
        )
    for name in HARD:
        try:
            if (typed := getattr(target, name)) is not None:
                asked = quantity(typed, name)
                if name != "speedup" and not asked.is_share and asked.value <= 100:
                    found.append(
                        f"target.{name} is {typed}, which are {asked.value:g} {_UNITS[name]}. Do you mean {asked.value:g}%?"
                    )
        except ValueError as fault:
            found.append(f"target.{name} {fault}.")
    if target.context == 0 and (target.speedup is not None or not target.formats):
        found.append(
            "target.context is 0; it must be at least 1. Only with target.formats may it leave the KV cache out."
        )
    found += _format_violations(target)
    if target.speedup is not None and not target.latency_table:
        found.append(
            "target.speedup needs a latency table of this machine. Make one by `darwinlm bench MODEL --table --output FOLDER` "
            "and give it by --target.latency_table FOLDER/latency.json."
        )
    return found


def _format_violations(target: TargetConfig) -> list[str]:
    if not target.formats:
        wrong = target.embedding_format is not None
        return ["target.embedding_format counts with target.formats alone. Give both, or neither."] if wrong else []
    found = []
    packed = [name for name in target.formats if name in get_args(PackedFormat)]
    if 0 < len(packed) < len(target.formats):
        found.append(
            f"target.formats has {', '.join(packed)} of vLLM beside those of llama.cpp, and no engine reads both. Leave one "
            "kind out."
        )
    if packed and target.embedding_format:
        found.append("target.embedding_format is for llama.cpp; vLLM's formats leave embedding and head as they are.")
    if target.memory is None:
        found.append(
            "target.formats needs target.memory: only bytes tell formats apart. Give the size of the file, such as 60MB."
        )
    if target.level is not None:
        found.append("target.level counts levels alone, whatever their format. With target.formats give target.memory.")
    if target.shape != "free":
        found.append("target.shape is stock, but target.formats gives every module a format of its own. Leave one out.")
    return found


def target_identity(target: TargetConfig) -> dict[str, Any]:
    """What a search depends on: only settings that count, however they were written."""
    found: dict[str, Any] = {"level": target.level}
    for name, asked in asked_quantities(target).items():
        found[name] = f"{asked.value:.12g}" + (" of dense" if asked.is_share else "")
    if "parameters" in found:
        found["parameters_of"] = target.parameters_of
    if "speedup" in found:
        found["workload"] = target.workload
    if "speedup" in found or "memory" in found:
        found |= {"batch": target.batch, "context": target.context}
    if target.shape != "free":  # which older runs do not know
        found["shape"] = target.shape
    if target.formats:
        found |= {
            "formats": sorted(set(target.formats)),
            "embedding_format": target.embedding_format,
            "rounded": ROUNDED,
        }
    return found


def described(target: TargetConfig, levels: int) -> str:
    """A target in words, such as `level 5 of 10` or `parameters 2.7B, memory 8GB (1 x 512 tokens)`."""
    work = f"{target.batch} x {target.context} tokens"
    notes = {
        "parameters": " of the layers" if target.parameters_of == "layers" else "",
        "memory": f" ({work})",
        "speedup": f" ({target.workload}, {work})",
    }
    parts = [] if target.level is None else [f"level {target.level:g} of {levels}"]
    shape = [] if target.shape == "free" else [f"{target.shape} shape"]
    shape += [f"formats {', '.join(target.formats)}"] if target.formats else []
    return ", ".join([*parts, *(f"{n} {v}{notes[n]}" for n, v in written(target)), *shape])


def as_flags(target: TargetConfig) -> list[str]:
    """The flags that ask for the same."""
    words = [] if target.level is None else ["--target.level", f"{target.level:g}"]
    words += [word for name, value in written(target) for word in (f"--target.{name}", value)]
    if target.formats:
        words += ["--target.formats", f"[{','.join(target.formats)}]"]
        words += ["--target.embedding_format", target.embedding_format] if target.embedding_format else []
    return words if target.shape == "free" else [*words, "--target.shape", target.shape]


def written(target: TargetConfig) -> list[tuple[Unit, str]]:
    """The hard targets as they were typed."""
    values: list[tuple[Unit, str | float | None]] = [(name, getattr(target, name)) for name in HARD]
    return [(name, v if isinstance(v, str) else f"{v:.12g}") for name, v in values if v is not None]
