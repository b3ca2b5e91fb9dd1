"""The entry point: one command, its settings, and what its end says."""

from __future__ import annotations

import sys
import warnings
from typing import NoReturn

from darwinlm.cli.calls import console
from darwinlm.cli.commands import COMMANDS, Command
from darwinlm.cli.flags import read_settings
from darwinlm.errors import InterruptedReading, RequestError
from darwinlm.runtime import ranks
from darwinlm.runtime.files import disk_faults_told
from darwinlm.runtime.memory import out_of_memory
from darwinlm.runtime.output import harmless, lasting_output
from darwinlm.runtime.progress import never_silent, show_log


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `darwinlm`; exits with 0 (done), 2 (the request is wrong) or 1 (anything else)."""
    with lasting_output() as output:
        _main(sys.argv[1:] if arguments is None else arguments)
        output.flush()
        if output.fault and not isinstance(output.fault, BrokenPipeError):
            _fail(1, f"Done, but it could not be printed: {output.fault.strerror}.")


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        console.show(overview())
        return
    if arguments[0] == "--version":
        from darwinlm import __version__

        console.show(f"darwinlm {__version__}")
        return
    try:
        command = _command(arguments[0])
        config, flags = read_settings(arguments[0], command, arguments[1:])
        ranks.join()
        show_log(speak=ranks.is_first())
        console.quiet = not ranks.is_first()
        _quiet_libraries()
        with never_silent(), disk_faults_told(config.path):
            command.call(config, flags)
        ranks.end_together()
    except RequestError as fault:
        _fail(2, *fault.faults)
    except InterruptedReading as fault:
        _fail(1, str(fault))
    except (MemoryError, RuntimeError) as fault:
        if not (message := out_of_memory(fault)):
            raise
        _fail(1, message)
    except KeyboardInterrupt:
        _fail(130, "stopped. The same command goes on from here.")
    finally:
        ranks.leave()


def _fail(code: int, *messages: str) -> NoReturn:
    for message in messages:
        print(f"darwinlm: {harmless(message)}", file=sys.stderr)
    sys.exit(code)


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise RequestError(
            f"There is no command '{name}'. The commands are: {', '.join(COMMANDS)}. See darwinlm --help."
        )
    return COMMANDS[name]


def overview() -> str:
    """What `darwinlm --help` prints."""
    lines = [f"  darwinlm {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "DarwinLM: really smaller and faster language models by training-aware evolutionary pruning.",
            "",
            *lines,
            "",
            "darwinlm COMMAND --help lists the settings. Begin with: darwinlm demo",
        ]
    )


def _quiet_libraries() -> None:
    """Progress bars and advice of libraries would tear ours apart; their warnings go to the log file."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
