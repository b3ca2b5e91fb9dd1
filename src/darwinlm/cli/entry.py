"""The entry point: one command, and what its end says."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from darwinlm.cli.commands import COMMANDS
from darwinlm.cli.help import overview, page
from darwinlm.cli.parsing import Request, read
from darwinlm.config.described import did_you_mean
from darwinlm.errors import InterruptedReading, RequestError
from darwinlm.runtime.output import PlainConsole, harmless, lasting_output, pasted
from darwinlm.runtime.progress import never_silent, show_log

if TYPE_CHECKING:
    from darwinlm.show.result import Result

console = PlainConsole(width=None if sys.stdout and sys.stdout.isatty() else 110)
SHELLS = ("bash", "zsh", "tcsh")
_HELP = ("-h", "--help", "help")
_COMPLETION = "darwinlm completion bash > ~/.local/share/bash-completion/completions/darwinlm"


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `darwinlm`; exits with 0 (done), 2 (the request is wrong) or 1 (anything else)."""
    with lasting_output() as output:
        _main(sys.argv[1:] if arguments is None else arguments)
        output.flush()
        if output.fault and not isinstance(output.fault, BrokenPipeError):
            _fail(1, f"Done, but it could not be printed: {output.fault.strerror}.")


def _main(typed: list[str]) -> None:
    try:
        if (told := _told(typed)) is not None:
            console.show(told)
            return
        request = read(_known(typed[0]), typed[1:])
    except RequestError as fault:
        _fail(2, *fault.faults)
    _run(request)


def _told(typed: list[str]) -> str | None:
    """What is answered without work: help, version, completion; None for commands."""
    first, rest = (typed or ["help"])[0], typed[1:]
    if first in ("--version", "version"):
        from darwinlm.version import __version__

        return f"darwinlm {__version__}"
    if "completion" in typed[:2] and (first in _HELP or {*rest} & {*_HELP}):
        return _COMPLETION
    if first in _HELP:
        return page(_known(rest[0]), rest[1] if rest[1:] else "") if rest else overview()
    if first == "completion":
        return _completion(rest[0] if rest else "")
    if asked := [word for word in rest if word in ("-h", "--help", "--help-all", "--help_all")]:
        after = rest[rest.index(asked[0]) + 1 :]
        return page(_known(first), "all" if "all" in asked[0] else after[0] if after else "")
    return None


def _known(name: str) -> str:
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        raise RequestError(
            f"There is no command '{name}'.{near or ' The commands are: ' + ', '.join(COMMANDS) + '.'} See darwinlm help."
        )
    return name


def _completion(shell: str) -> str:
    """A script for a shell.

    Raises:
        RequestError: there is none for it.
    """
    if shell not in SHELLS:
        raise RequestError(
            f"There is no completion for '{shell}'; give one of {', '.join(SHELLS)}, such as: {_COMPLETION}"
        )
    from darwinlm.cli.completion import script

    return script(shell)


def _run(request: Request) -> None:
    """Call the function of a command and print its result."""
    try:
        ranks = _joined_ranks()
        first = ranks is None or ranks.is_first()
        show_log(speak=first and not request.quiet)
        _quiet_libraries(request.verbose)
        with never_silent():
            result = request.run()
        if first:
            _show(result, request.json)
        if ranks:
            ranks.end_together()
    except KeyboardInterrupt:
        _fail(130, "stopped. The same command goes on from here.")
    except Exception as fault:
        if (told := _told_fault(fault, Path(str(request.arguments.get("output", ""))))) is None:
            raise
        if request.verbose:
            traceback.print_exception(fault)
        _fail(*told)
    finally:
        if joined := sys.modules.get("darwinlm.runtime.ranks"):
            joined.leave()


def _joined_ranks() -> Any:
    """The ranks, where torchrun started several processes; None, and no import of torch, in a single one."""
    if not any(os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")):
        return None
    from darwinlm.runtime import ranks

    ranks.join()
    return ranks


def _show(result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    console.show(*result.tables())
    if words := result.after():
        console.show(f"Next: {pasted('darwinlm', *words)}")


def _told_fault(fault: Exception, place: Path) -> tuple[int | str, ...] | None:
    """Exit code and messages; None for faults of the program."""
    if isinstance(fault, RequestError):
        return 2, *fault.faults
    if isinstance(fault, InterruptedReading):
        return 1, str(fault)
    if isinstance(fault, MemoryError | RuntimeError):
        from darwinlm.runtime.memory import out_of_memory

        return (1, told) if (told := out_of_memory(fault)) else None
    if isinstance(fault, OSError) and fault.errno == errno.ENAMETOOLONG:
        return 2, f"'{str(fault.filename)[:60]}…' is too long for the name of a file."
    if isinstance(fault, OSError):
        from darwinlm.runtime.files import disk_faults_told

        with suppress(OSError):
            try:
                with disk_faults_told(place):
                    raise fault
            except RequestError as told:
                return 2, *told.faults
    return None


def _fail(code: Any, *messages: Any) -> NoReturn:
    for message in messages:
        print(f"darwinlm: {harmless(message)}", file=sys.stderr)
    sys.exit(code)


def _quiet_libraries(verbose: bool) -> None:
    """Progress bars and advice of libraries would tear ours apart; their warnings go to the log file."""
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when they are imported, which takes seconds
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
