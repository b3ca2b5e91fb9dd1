"""What `darwinlm eval` found: on text, at tasks, and as files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from darwinlm.measure.quality import Quality, with_error
from darwinlm.measure.task_scores import TaskComparison, task_markdown
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
        lines = [f"| {name} | {_row(quality)} |" for name, quality in self.qualities.items()]
        head = ["| model | parameters | perplexity | KL to dense |", "|---|---|---|---|"]
        parts = ["\n".join([f"{self.text}.", "", *head, *lines]) + "\n"] if lines else []
        parts += [task_markdown(self.tasks)] if self.tasks else []
        write_text(folder / "eval.md", "\n".join(parts))


def _row(quality: Quality) -> str:
    kl = "-" if quality.kl is None else with_error(quality.kl, quality.kl_error, 4)
    return f"{quality.parameters:,} | {with_error(quality.perplexity, quality.perplexity_error, 2)} | {kl}"
