"""The command line: reads settings, calls one function, prints a table. No logic of its own."""

from darwinlm.cli.commands import COMMANDS
from darwinlm.cli.entry import main
from darwinlm.cli.flags import read_settings

__all__ = ["COMMANDS", "main", "read_settings"]
