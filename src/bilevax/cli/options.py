"""The command, and options that more than one of its commands takes."""

from typing import Annotated

import typer

app = typer.Typer(
    name="bilevax",
    help="Tune a model of a table that one can read, apply it, read the report; audit a bilevel problem.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def column(meaning: str) -> object:
    """An option that is the name of a column."""
    return typer.Option(metavar="COLUMN", help=meaning)


# --debug is read by the entry point, around all commands.
TABLE = typer.Argument(
    metavar="TABLE",
    help="CSV, Parquet or svmlight file, of tune and predict also a directory or a 'pattern' of Parquet files, or a "
    "bundled data set: airfoil, breast_cancer, diabetes, digits, iris, wine.",
)
NO_CACHE = typer.Option(
    "--no-cache", help="Compile anew: do not keep compiled programs in ~/.cache/bilevax, nor use those kept."
)
DETERMINISTIC = typer.Option(
    "--deterministic", help="Compute with one thread: another number of threads changes the last bits of sums."
)
DROP = column("Column that is not looked at; may be repeated.")
TEXT = column("Column to read as text; may be repeated.")
MISSING = typer.Option(
    metavar="MARKS",
    help="Cells that say that nothing is known: '?,NA', or of one column COLUMN='?,NA'; may be repeated.",
)
TYPES = typer.Option(
    metavar="COLUMN=TYPE", help="What a column is: text, number, date, day-first or month-first; may be repeated."
)
MAX_CELLS = typer.Option(metavar="N", min=1, help="Rows x columns at most, of a Parquet or svmlight file.")
FORCE = typer.Option("--force", help="Replace the run in DIR.")
QUIET = typer.Option("--quiet", help="Show the path of the report and faults alone.")
DEBUG = typer.Option("--debug", help="Show where an error came from.")


def _version(wanted: bool) -> None:
    if wanted:
        import bilevax

        typer.echo(f"bilevax {bilevax.__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
