"""Checkpoints: written in several forms, read from others, trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darwinlm.export.forms import Form
from darwinlm.export.huggingface import CODE
from darwinlm.foreign.gguf.importing import ImportedGguf
from darwinlm.foreign.masked import Imported as ImportedMasked
from darwinlm.measure.tables import gigabytes, trained_table
from darwinlm.runtime.output import pasted
from darwinlm.show.result import Result, empty_table, lies, shown, taken


@dataclass(frozen=True)
class Exported(Result):
    """A checkpoint in its forms, the canonical one first; none on other ranks than the first."""

    model: str
    """The dense model, where it is known."""
    forms: list[Form]
    url: str = ""
    """Where it was pushed to."""

    @property
    def folder(self) -> Path:
        """Of the canonical checkpoint."""
        return self.forms[0].path

    def tables(self) -> Iterable[Any]:
        """Sizes and places."""
        table = empty_table("Written", "form", "parameters", "weights")
        for form in self.forms:
            table.add_row(form.name, f"{form.parameters:,}", gigabytes(form.bytes))
        yield table
        for form in self.forms:
            yield f"{form.name}: {pasted(form.path)}"
            yield from (f"{form.name}: {note}" for note in form.notes)
        stock = not any((form.path / f"{CODE}.py").exists() for form in self.forms)
        beside = ", the packed one with compressed-tensors beside it" if self._packed else " alone"
        yield f"The folders load with transformers{beside}{'' if stock else ' (trust_remote_code=True)'}."
        if self.url:
            yield f"It is on the hub: {self.url}"

    def after(self) -> Sequence[Any]:
        """Score it, or what packing lost."""
        if self._packed:
            return "eval", self._packed[-1].path, "--against", self.folder
        return "eval", self.folder, "--against", self.model or "MODEL"

    @property
    def _packed(self) -> list[Form]:
        return [form for form in self.forms if form.name.startswith("compressed-tensors")]


@dataclass(frozen=True)
class Imported(Result):
    """Somebody else's model, as a checkpoint."""

    found: ImportedMasked | ImportedGguf

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return self.found.folder

    def tables(self) -> Iterable[Any]:
        """What was there, and what is left."""
        found = self.found
        if isinstance(found, ImportedMasked):
            table = empty_table("Kept", "layer", "query heads", "KV heads", "MLP columns")
            for layer, (old, new) in enumerate(zip(found.before.layers, found.after.layers)):
                pairs = ((old.heads, new.heads), (old.kv_heads, new.kv_heads), (old.intermediate, new.intermediate))
                table.add_row(str(layer), *(f"{after} of {before}" for before, after in pairs))
            table.caption = f"{found.after.parameters:,} of {found.before.parameters:,} parameters"
        else:
            table = empty_table("Read", "family", "layers", "parameters", "matrices in the file", "stored as")
            types = ", ".join(f"{number} {name}" for name, number in found.types.items())
            row = (found.model_type, str(len(found.shape.layers)), f"{found.shape.parameters:,}", types)
            table.add_row(*row, str(found.dtype).removeprefix("torch."))
        yield table
        yield lies("The checkpoint lies", found.folder)

    def after(self) -> Sequence[Any]:
        """Score what was pruned, prune what was not."""
        if isinstance(self.found, ImportedMasked):
            return "eval", self.folder, "--against", "MODEL", "--data", "TEXT"
        return "prune", self.folder, "--data", "TEXT", "--output", "RUN"

    def to_dict(self) -> dict[str, Any]:
        """Folder and parameters."""
        found = self.found
        before, after = (found.before, found.after) if isinstance(found, ImportedMasked) else (found.shape, found.shape)
        return {"folder": str(self.folder), "parameters": after.parameters, "parameters_before": before.parameters}


@dataclass(frozen=True)
class Trained(Result):
    """A checkpoint after post-training."""

    teacher: str
    """The dense model it learnt from, where there was one."""
    summary: dict[str, Any]
    """What `summary.json` holds: `model` (the folder), `before` and `trained` with `perplexity` and `kl` to the teacher,
    `tokens`, `seconds`, `peak_memory_bytes`; empty on other ranks than the first."""

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return Path(self.summary["model"])

    def tables(self) -> Iterable[Any]:
        """Held-out text before and after."""
        yield shown(trained_table(self.summary, "Held-out text", taken(self.summary)))

    def after(self) -> Sequence[Any]:
        """Score it."""
        return "eval", self.folder, "--against", self.teacher or "MODEL"
