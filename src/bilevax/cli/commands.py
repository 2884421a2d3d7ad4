"""The commands that tune, apply and clean a table, and their options."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bilevax.cli.cache import keep_programs
from bilevax.cli.options import (
    DEBUG,
    DETERMINISTIC,
    DROP,
    FORCE,
    MAX_CELLS,
    MISSING,
    NO_CACHE,
    QUIET,
    TABLE,
    TEXT,
    TYPES,
    app,
    column,
)
from bilevax.cli.threads import one_thread


@app.command()
def tune(
    context: typer.Context,
    table: Annotated[str | None, TABLE] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory of the run; it is made.")] = None,
    target: Annotated[str | None, column("Column to predict; bundled data sets know theirs.")] = None,
    model: Annotated[
        Literal["additive", "linear"] | None,
        typer.Option(help="additive (default): a curve for every column; linear: logistic regression, by JAX."),
    ] = None,
    task: Annotated[
        Literal["auto", "classes", "number", "count", "amount"] | None,
        typer.Option(help="What is predicted; auto (default): classes, or a number where there are many."),
    ] = None,
    pairs: Annotated[
        bool | None,
        typer.Option("--pairs/--no-pairs", help="Whether pairs of columns may act together (default: yes)."),
    ] = None,
    scoring: Annotated[
        str | None, typer.Option(metavar="NAME", help="A score of scikit-learn that the report leads with.")
    ] = None,
    class_weight: Annotated[
        Literal["balanced"] | None, typer.Option(help="Give rare classes the weight of frequent ones.")
    ] = None,
    group: Annotated[str | None, column("Rows that agree in it stay together in one part of the split.")] = None,
    time_column: Annotated[str | None, column("Train on the oldest rows by it, test on the newest.")] = None,
    exposure: Annotated[
        str | None, column("What counts or amounts are in proportion to, such as years insured.")
    ] = None,
    drop: Annotated[list[str] | None, DROP] = None,
    text: Annotated[list[str] | None, TEXT] = None,
    missing: Annotated[list[str] | None, MISSING] = None,
    types: Annotated[list[str] | None, TYPES] = None,
    keep: Annotated[
        list[str] | None, column("Column that is not learned from, as identifiers are; may be repeated.")
    ] = None,
    max_cells: Annotated[
        int | None, typer.Option(metavar="N", help="Rows x columns of a Parquet or svmlight file, at most.")
    ] = None,
    test_size: Annotated[
        float | None, typer.Option(metavar="F", help="Share of the rows that no tuning sees (default: 0.2).")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="90s, 5m, 1h: then compare no more models, and keep the best so far."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the split and of the tuning (default: 0).")] = None,
    penalty_per: Annotated[
        Literal["feature", "column", "class", "weight", "global"] | None,
        typer.Option(help="Of a linear model: what has a penalty of its own (default: feature)."),
    ] = None,
    words: Annotated[
        list[str] | None, column("Of a linear model: column of texts, to learn from its words; repeatable.")
    ] = None,
    characters: Annotated[
        list[str] | None, column("Of a linear model: the same from 3 to 5 characters in a row.")
    ] = None,
    cells: Annotated[
        list[str] | None, column("Of a linear model: column of cells NUMBER:VALUE; 'cells' of a svmlight file.")
    ] = None,
    validation_size: Annotated[
        float | None,
        typer.Option(metavar="F", help="Of a linear model: share of the rows that end the tuning (default: 0.2)."),
    ] = None,
    method: Annotated[
        Literal["auto", "stochastic", "deterministic"] | None,
        typer.Option(help="Of a linear model; auto (default): what suits the table's size."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Of a linear model: outer steps at most (default: 100).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file with these options, or the config.toml of a run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Show the outcome as JSON.")] = False,
    quiet: Annotated[bool, QUIET] = False,
    force: Annotated[bool, FORCE] = False,
    deterministic: Annotated[bool, DETERMINISTIC] = False,
    no_cache: Annotated[bool, NO_CACHE] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Tune a model of a table, compare it with others, and write model, metrics and report to a directory."""
    if deterministic:
        one_thread()
    keep_programs(not no_cache)
    from bilevax.cli.tune import begin

    # The context holds all options by name; those that are fields of TuneSettings are picked from it.
    raise typer.Exit(begin(context.params))


@app.command()
def resume(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory of a run that was killed or interrupted.")
    ],
    table: Annotated[
        str | None, typer.Option("--table", metavar="TABLE", help="Where its table is now, if it was moved.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of tune anew; may be repeated.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Setting that may differ, or sha256 of the table; may be repeated."),
    ] = None,
    deterministic: Annotated[bool, DETERMINISTIC] = False,
    no_cache: Annotated[bool, NO_CACHE] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Go on with a run that was killed or interrupted, to the same model as if it had not been."""
    if deterministic:
        one_thread()
    keep_programs(not no_cache)
    from bilevax.cli.resume import run

    raise typer.Exit(run(directory, table, settings or [], override or []))


@app.command()
def predict(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run.")],
    table: Annotated[str, TABLE],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="CSV file to write; without it, standard output.")
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MARKS",
            help="More cells that say that nothing is known: '?,NA', or of one column COLUMN='?,NA'; may be repeated.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None, column("Column whose cells stand before the prediction; may be repeated.")
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Compare the predictions with the target column, which is in the table.")
    ] = False,
    max_cells: Annotated[int | None, MAX_CELLS] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Of two classes: predict the second where its probability is at least P, not the more probable one.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Apply a tuned model: for each row the predicted label and the probability of every class, or the number."""
    from bilevax.cli.predict import PredictOptions, run

    options = PredictOptions(missing or (), keep or (), score, max_cells, threshold)
    run(directory, table, out, options, force=force)


@app.command()
def clean(
    context: typer.Context,
    table: Annotated[str, TABLE],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory of what is found; it is made.")],
    target: Annotated[str | None, column("Column of labels; bundled data sets know theirs.")] = None,
    trusted: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Other rows, with the same columns, whose labels are known to be right."),
    ] = None,
    trusted_column: Annotated[str | None, column("Or a column that marks such rows: yes or no, 1 or 0.")] = None,
    cleaned: Annotated[
        bool, typer.Option("--cleaned", help="Write the table, too, with the labels that are probably right.")
    ] = False,
    model: Annotated[
        Literal["linear", "additive"] | None,
        typer.Option(help="What learns the labels: linear (default), or additive: a curve for every column, slower."),
    ] = None,
    truth: Annotated[str | None, column("Of true labels, where they are known: says how right all this is.")] = None,
    flip: Annotated[
        float | None,
        typer.Option(
            metavar="F", min=0, max=0.9, help="A rehearsal: turn this share of the labels, and look for them."
        ),
    ] = None,
    trust: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a rehearsal: so many labels, drawn, are trusted.")
    ] = None,
    task: Annotated[
        Literal["auto", "classes"] | None,
        typer.Option(help="classes: the many numbers of the target are labels; auto (default): then it is refused."),
    ] = None,
    drop: Annotated[list[str] | None, DROP] = None,
    text: Annotated[list[str] | None, TEXT] = None,
    missing: Annotated[list[str] | None, MISSING] = None,
    types: Annotated[list[str] | None, TYPES] = None,
    keep: Annotated[
        list[str] | None, column("Column that is not learned from, and stands beside each suspicious row.")
    ] = None,
    max_cells: Annotated[int | None, MAX_CELLS] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Of folds (default: 0).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Show what was found as JSON.")] = False,
    quiet: Annotated[bool, QUIET] = False,
    force: Annotated[bool, FORCE] = False,
    deterministic: Annotated[bool, DETERMINISTIC] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Find the rows of a table whose label is probably wrong, by a few whose labels are known to be right."""
    if deterministic:
        one_thread()
    from bilevax.cli.clean import run

    raise typer.Exit(run(context.params))


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run.")],
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Write report.html of a run anew."""
    from bilevax.report import write_report

    typer.echo(write_report(directory))
