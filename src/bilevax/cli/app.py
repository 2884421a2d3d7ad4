"""The command ``bilevax``: its commands in the order in which the help lists them."""

from bilevax.cli import commands as commands
from bilevax.cli import commands_of_problems as commands_of_problems
from bilevax.cli.options import app as app
