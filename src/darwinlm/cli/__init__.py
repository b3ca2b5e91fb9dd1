"""The command line, made from the signatures and docstrings of the API: reads what is typed, calls one function, prints."""

from darwinlm.cli.commands import COMMANDS
from darwinlm.cli.entry import main
from darwinlm.cli.parsing import read
