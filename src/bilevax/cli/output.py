"""Where tables and progress go."""

import sys

from rich.console import Console


class Output(Console):
    """Standard output, or standard error; a pipe, which has no width, gets 120 columns of the former.

    Args:
        progress: to standard error.
    """

    def __init__(self, *, progress: bool = False) -> None:
        width = None if progress or sys.stdout.isatty() else 120
        super().__init__(stderr=progress, highlight=False, width=width)

    def on_broken_pipe(self) -> None:
        """The reader went away; rich would exit with 1, which is the code of other things."""
        raise BrokenPipeError
