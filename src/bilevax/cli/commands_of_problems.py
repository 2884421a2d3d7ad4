"""The commands that look at a table or a problem, compare algorithms and start processes; ``cli.app`` imports them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bilevax.cli.cache import keep_programs
from bilevax.cli.options import DEBUG, NO_CACHE, app, column


@app.command()
def check(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="TABLE|MODULE:PROBLEM",
            help="A table, or a module or a .py file and in it a dictionary, a record, or a function that returns one.",
        ),
    ],
    target: Annotated[str | None, column("Of a table: the column to predict.")] = None,
    drop: Annotated[list[str] | None, column("Of a table: column that is not looked at.")] = None,
    text: Annotated[list[str] | None, column("Of a table: column to read as text.")] = None,
    missing: Annotated[
        list[str] | None, typer.Option(metavar="MARKS", help="Of a table: cells that say that nothing is known.")
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=TYPE", help="Of a table: what a column is, as of tune.")
    ] = None,
    task: Annotated[
        Literal["auto", "classes", "number", "count", "amount"] | None,
        typer.Option(
            help="Of a table: what is predicted; auto (default): classes, or a number where it has many values."
        ),
    ] = None,
    group: Annotated[str | None, column("Of a table: rows that agree in it belong together.")] = None,
    time_column: Annotated[str | None, column("Of a table: column that says which rows are older.")] = None,
    max_cells: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a Parquet or svmlight file: rows x columns at most.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of a table: what is found, as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Of a problem: write the findings as a page, too.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of a problem: seed of all that the audit draws.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    no_cache: Annotated[bool, NO_CACHE] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Look through a table before any fit: leaks, identifiers, copies, dates as numbers; or audit a bilevel problem."""
    from bilevax.cli import check_table

    if check_table.is_table(subject):
        check_table.refuse_options(context, ("html", "seed", "force", "no_cache"), "a table")
        from bilevax.tables.reading import MAX_CELLS, Reading, marks_from_words, types_from_words

        marks, kinds = marks_from_words(missing or ()), types_from_words(types or ())
        reading = Reading(text or (), drop=drop or (), missing=marks, types=kinds, max_cells=max_cells or MAX_CELLS)
        asked = check_table.Asked(target, None if task == "auto" else task, group, time_column)
        raise typer.Exit(check_table.run(subject, asked, reading, as_json=as_json))
    of_tables = ("target", "drop", "text", "missing", "types", "task", "group", "time_column", "max_cells", "as_json")
    check_table.refuse_options(context, of_tables, "a problem in a module")
    # Before the process of the audit starts, which inherits these settings.
    keep_programs(not no_cache)
    from bilevax.cli.check import run

    raise typer.Exit(run(subject, html, seed=seed, force=force, debug=debug))


@app.command()
def bench(
    problems: Annotated[
        list[str] | None, typer.Argument(metavar="PROBLEM", help="Of bilevax.testing.problems; one or more.")
    ] = None,
    algorithms: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="What to compare; without it, all of them.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each.")] = 5,
    budget: Annotated[float, typer.Option(metavar="N", help="Rows that a run reads, in all minibatches.")] = 200_000,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="CPU seconds of a run, compared beside the samples.")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Choose each algorithm's steps from 24 pairs, the same for all.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write comparison.json and the pictures there.")
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="Show the problems and the algorithms.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the comparison in DIR.")] = False,
    no_cache: Annotated[bool, NO_CACHE] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Compare bilevel algorithms with equal budgets, on problems with exact hypergradients."""
    keep_programs(not no_cache)
    from bilevax.cli.bench import run, show_names

    if names:
        show_names()
        return
    run(problems or [], algorithms, out, seeds=seeds, budget=budget, seconds=seconds, grid=grid, force=force)


@app.command(hidden=True)
def assist() -> None:
    """Go through the rows of a process that is not the first of its group: ``launch -- tune`` starts it."""
    from bilevax.cli import group

    raise typer.Exit(group.assist())


@app.command(context_settings={"allow_interspersed_args": False})
def launch(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND...", help="A program, such as python train.py; or tune, or resume."),
    ],
    number: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Processes.")],
    restarts: Annotated[int, typer.Option(metavar="N", min=0, help="How often all are started again.")] = 3,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds that one of them may stand still (SIGSTOP).")
    ] = 60.0,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Start a program in several processes that compute together, and again where one of them dies."""
    from bilevax.cli.launch import run

    raise typer.Exit(run(command, number, restarts, timeout))
