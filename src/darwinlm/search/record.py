"""The search on disk: its state, replaced after every generation, and a line of history for each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darwinlm.errors import DamagedFileError
from darwinlm.genome import Genome, Space, is_valid
from darwinlm.runtime import ranks
from darwinlm.runtime.files import append_line, read_json, write_json, write_text


@dataclass(frozen=True)
class SearchState:
    """All that the next generation depends on, besides the settings."""

    generation: int
    """Generations done."""
    parent: Genome
    kl: float
    """The parent's score in the last selection step; infinite before the first one."""
    seconds: float
    """Time spent so far."""
    unbeaten: int = 0
    """Generations that the parent has stood without being beaten."""


class SearchRecord:
    """The search on disk: `state.json`, replaced after every generation, and `history.jsonl`, a line for each.

    Args:
        folder: where they lie.
        identity: the settings that the search belongs to.
        space: the modules.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], space: Space) -> None:
        self.folder, self.identity, self.space = folder, identity, space

    @property
    def state_file(self) -> Path:
        """Where the state lies."""
        return self.folder / "state.json"

    def stored_identity(self) -> dict[str, Any] | None:
        """The settings of the search that lies there; None where there is none."""
        return self._saved().get("identity") if self.state_file.exists() else None

    def _saved(self) -> dict[str, Any]:
        try:
            return dict(read_json(self.state_file))
        except (DamagedFileError, TypeError, ValueError) as fault:
            raise DamagedFileError(f"'{self.state_file}' is damaged. Run the search again with --restart.") from fault

    def load(self) -> SearchState | None:
        """The last saved state; None where the search has not begun."""
        if not self.state_file.exists():
            return None
        saved = self._saved()
        try:
            kl = math.inf if saved["kl"] is None else float(saved["kl"])
            parent, unbeaten = self.space.genome(saved["parent"]), int(saved["unbeaten"])
            state = SearchState(int(saved["generation"]), parent, kl, float(saved["seconds"]), unbeaten)
            if not is_valid(self.space, state.parent):
                raise ValueError("a level is on no ladder")
        except (KeyError, TypeError, ValueError) as fault:
            raise DamagedFileError(
                f"'{self.state_file}' is damaged ({fault}). Run the search again with --restart."
            ) from fault
        self._cut_history(state.generation)
        return state

    def save(self, state: SearchState, line: dict[str, Any] | None = None) -> None:
        """Append the generation's line to the history, then replace the state; the first rank does it for all."""
        if not ranks.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if line is not None:
            append_line(self.folder / "history.jsonl", json.dumps(line))
        elif state.generation == 0:
            (self.folder / "history.jsonl").unlink(missing_ok=True)
        saved = {
            "generation": state.generation,
            "kl": state.kl if math.isfinite(state.kl) else None,
            "seconds": round(state.seconds, 3),
            "unbeaten": state.unbeaten,
            "parent": self.space.named(state.parent),
            "identity": self.identity,
        }
        write_json(self.state_file, saved)

    def _cut_history(self, generations: int) -> None:
        """Drop lines of generations that the saved state does not know: they will be made again."""
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        try:
            known = [json.loads(line)["generation"] for line in lines[:generations]]
        except (ValueError, KeyError, TypeError):
            known = []
        if known != list(range(generations)):
            raise DamagedFileError(
                f"'{path}' does not hold the {generations} generations that are done. Run with --restart."
            )
        if len(lines) != generations and ranks.is_first():
            write_text(path, "".join(line + "\n" for line in lines[:generations]))
