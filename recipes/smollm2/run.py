"""The experiment of experiment.yaml, step by step; a step whose result lies there is left out, a killed one goes on.

    python recipes/smollm2/run.py [--output runs/smollm2] [--texts ../shared/text] [--tasks ../shared/eval]
                                  [--settings recipes/smollm2/tiny.yaml] [--page docs/smollm2.md] [--only STEP] [--list]

Every step is commands as a user types them; they, their seconds, threads and peak memory are kept in OUTPUT/done/STEP.json.
The folders of texts and tasks may be given by DARWINLM_TEXTS and DARWINLM_TASKS. Where they are absent, steps that need them
are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiment import HERE, read_experiment
from steps import Step, steps

RATE = 1e11
"""Operations a second that two cores are expected to reach."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--texts", type=Path, default=Path(os.environ.get("DARWINLM_TEXTS", "../shared/text")))
    parser.add_argument("--tasks", type=Path, default=Path(os.environ.get("DARWINLM_TASKS", "../shared/eval")))
    parser.add_argument("--settings", type=Path, help="file whose settings replace those of experiment.yaml")
    parser.add_argument("--page", type=Path, default=Path("docs/smollm2.md"))
    parser.add_argument("--only", help="one step")
    parser.add_argument("--list", action="store_true", help="say what the steps are and take, and do nothing")
    args = parser.parse_args()
    experiment = read_experiment(args.output, args.texts, args.tasks, args.settings)
    todo = [step for step in steps(experiment) if args.only in (None, step.name)]
    for number, step in enumerate(todo, 1):
        if args.list:
            say(f"{step.name}: {expected(step)}")
        else:
            run(step, args.output, f"{number}/{len(todo)}")
    if args.list:
        say(f"In all: {expected(Step('', list, sum(step.operations for step in todo)))}")
    else:
        subprocess.run([sys.executable, str(HERE / "page.py"), str(args.output), str(args.page)], check=True)


def run(step: Step, output: Path, number: str) -> None:
    """Do a step, unless it is done; its commands go on where they were killed."""
    record, begun = output / "done" / f"{step.name}.json", output / "begun" / f"{step.name}.json"
    if missing := [path for path in step.needs if not path.exists()]:
        say(f"{number} {step.name}: left out, there is no '{missing[0]}'")
        return
    commands = step.commands()
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("commands") == commands:
        say(f"{number} {step.name}: done, {known['seconds'] / 60:.1f} min")
        return
    say(f"{number} {step.name}: {expected(step)}")
    taken = json.loads(begun.read_text()) if begun.exists() else {"seconds": 0.0, "peak_memory_bytes": 0}
    taken["threads"] = sorted(
        {*taken.get("threads", []), int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)}
    )
    began = time.perf_counter() - taken["seconds"]

    def note(memory: int = 0) -> None:
        taken["seconds"] = round(time.perf_counter() - began, 1)
        taken["peak_memory_bytes"] = max(taken["peak_memory_bytes"], memory)
        write(begun, taken)

    for command in commands:
        say(f"    {shlex.join(command)}")
        code, memory = waited(command, note)
        note(memory)
        if code:
            sys.exit(f"{step.name} ended with exit code {code}. The same command goes on from here.")
    write(record, {"commands": commands, **taken})


def expected(step: Step) -> str:
    """How long a step is likely to take."""
    minutes = step.operations / RATE / 60
    return (
        f"about {minutes / 60:.1f} h on two cores"
        if minutes > 90
        else f"about {max(1, round(minutes))} min on two cores"
    )


def waited(command: list[str], note: Callable[[], None]) -> tuple[int, int]:
    """Exit code and peak memory in bytes of a command; `note` is called every now and then, so that a kill loses little."""
    process, noted = subprocess.Popen(command), time.perf_counter()
    while True:
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        time.sleep(0.2)
        if time.perf_counter() > noted + 20:
            noted = time.perf_counter()
            note()


def write(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def say(line: str) -> None:
    """Now: the commands' own lines come between."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
