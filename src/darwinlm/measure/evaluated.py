"""What `darwinlm eval` found: on text, at tasks, and as files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from darwinlm.measure.quality import Quality
from darwinlm.measure.tables import Table, quality_table, task_tables
from darwinlm.measure.task_scores import TaskComparison
from darwinlm.runtime.files import write_json, write_text


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    qualities: dict[str, Quality]
    """`dense` where there is one, and `model`; empty where there was no text to read."""
    text: str
    """Which text that was."""
    tasks: TaskComparison | None

    def save(self, folder: Path) -> None:
        """Write `eval.json` and `eval.md`."""
        rows = {name: dataclasses.asdict(quality) for name, quality in self.qualities.items()}
        tasks = self.tasks.as_dict() if self.tasks else None
        write_json(folder / "eval.json", {"text": self.text, "qualities": rows, "tasks": tasks})
        models = [f"{label}: `{name}`  " for label, name in (self.tasks.models if self.tasks else {}).items()]
        parts = [*(["\n".join(models) + "\n"] if models else []), *(table.markdown() for table in self.as_tables())]
        write_text(folder / "eval.md", "\n".join(parts))

    def as_tables(self) -> list[Table]:
        """Text and tasks, as far as there are any."""
        qualities = {name: dataclasses.asdict(quality) for name, quality in self.qualities.items()}
        return [
            *([quality_table(qualities, self.text)] if qualities else []),
            *(task_tables(self.tasks) if self.tasks else []),
        ]
