"""The ``bilevax`` command: thin, with every import where it is needed."""

from bilevax.cli.entry import main

__all__ = ["main"]
