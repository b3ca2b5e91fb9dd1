"""Which tasks of lm-evaluation-harness are asked for: names with numbers of examples, or the paper's list."""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.errors import RequestError


@dataclass(frozen=True)
class TaskRequest:
    """One task, group or tag of the harness."""

    name: str
    shots: int | None = None
    """Solved examples in front of each question; None leaves what the task says."""
    metric: str = ""
    """The metric that counts in the average; empty for the first that is there of `USUAL_METRICS`."""

    def __str__(self) -> str:
        return self.name if self.shots is None else f"{self.name}@{self.shots}"


USUAL_METRICS = ("acc", "acc_norm", "exact_match")
PAPER = (
    TaskRequest("arc_easy", 0, "acc"),
    TaskRequest("logiqa", 0, "acc_norm"),
    TaskRequest("piqa", 0, "acc"),
    TaskRequest("sciq", 0, "acc"),
    TaskRequest("boolq", 0, "acc"),
    TaskRequest("mmlu", 5, "acc"),
    TaskRequest("winogrande", 5, "acc"),
    TaskRequest("hellaswag", 10, "acc_norm"),
    TaskRequest("arc_challenge", 25, "acc_norm"),
)
"""Tasks and shots of arXiv 2502.07780. It does not print its metrics; length-normalized accuracy is usual for
the last two and LogiQA, and plain accuracy for the others. Both are reported wherever the harness has both."""


def read_tasks(text: str) -> tuple[TaskRequest, ...]:
    """The tasks behind `paper`, or behind names with commas, each with `@SHOTS` where that is wanted.

    Raises:
        RequestError: a name or a number is missing or stands there twice; names them all.
    """
    if text.strip() == "paper":
        return PAPER
    found: list[TaskRequest] = []
    wrong: list[str] = []
    for word in (word.strip() for word in text.split(",")):
        name, at, shots = word.partition("@")
        if not name or (at and not shots.isdecimal()):
            wrong.append(f"--tasks has '{word}'; write a task's name, or name@shots such as hellaswag@10.")
        elif (request := TaskRequest(name, int(shots) if at else None)) in found:
            wrong.append(f"--tasks names '{word}' twice; leave one of them out.")
        else:
            found.append(request)
    if wrong:
        raise RequestError(*wrong)
    return tuple(found)
