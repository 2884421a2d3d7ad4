"""Does LabelCleaner find wrong labels better than cleanlab and losses of trusted rows, and know how many there are?

Digits, Adult (20,000 rows), Fashion-MNIST (10,000), Rotten Tomatoes (8,000); 20 and 40 % of the labels flipped, by
class (of two, one alone turns) or uniformly; 200, 500 or 1,000 trusted rows; seeds that had no part in any choice. Also
flips that depend on the features (``--located``) and no trusted rows at all (``--untold``), without a goal. Beside it,
with models of the same kind: cleanlab (the best of its five scores in each run, ``pip install cleanlab``), the loss
under a model of the trusted rows, gold loss correction, plain EM, a model that is told the matrix, and a ceiling that
knows the clean labels, too. Area under the ROC of flipped against other rows, precision at the true number,
calibration, expected over true number, test accuracy after.
``--real``: the most suspicious rows of labels as they are, and their pictures; ``--times``: CPU seconds on one core.
What is measured is not measured again; --again measures anew.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import labels_figures as figures
from benchmarks import labels_real, labels_times, machine, store, tables
from benchmarks.labels_cells import KINDS, LOCATED, ROWS, TRUSTED
from benchmarks.labels_rivals import METHODS, UNTOLD

SEEDS = (100, 101, 102, 103, 104)
LIMIT = 7200
"""CPU seconds of a cell."""


def arguments(parser: argparse.ArgumentParser) -> None:
    names = dict.fromkeys([*ROWS, *labels_times.NAMES])
    parser.add_argument("--only", nargs="+", choices=names, metavar="DATA", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--trusted", nargs="+", type=int, metavar="ROWS", help="of those of the data set")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=", ".join(METHODS))  # fmt: skip
    parser.add_argument("--untold", action="store_true", help="no trusted rows, instead")
    parser.add_argument("--located", action="store_true", help="flips that depend on the features, too")
    parser.add_argument("--real", action="store_true", help="labels as they are, and their pictures, instead")
    parser.add_argument("--times", action="store_true", help="CPU seconds instead")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--show", action="store_true", help="measure nothing: the tables of what is there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write them between the marks of a page, too")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    record = store.kept(options)
    runs = record.setdefault("runs", {})
    if options.real or options.times:
        part, asked = ("real", labels_real) if options.real else ("times", labels_times)
        for name in options.only or (("digits",) if options.quick else asked.NAMES):
            run = asked.measure(name, options.quick) | {"tree": machine.commit(described=True)}
            record.setdefault(part, {})[name] = run
            store.keep(options, record)
    elif not options.show:
        measure(options, record, runs)
    text = figures.page(record)
    print(f"\n{text}")
    if options.page:
        tables.into(options.page, "labels", text)


def measure(options: argparse.Namespace, record: dict[str, Any], runs: figures.Runs) -> None:
    """Every run that is asked for and not there, seed by seed."""
    for seed in options.seeds[: 1 if options.quick else None]:
        for name in options.only or (("digits",) if options.quick else ROWS):
            sizes = [m for m in TRUSTED[name] if not options.trusted or m in options.trusted]
            for trusted in [0] if options.untold else sizes:
                for kind, rate in KINDS[:1] if options.quick else KINDS + LOCATED * options.located:
                    kept = runs.setdefault(f"{name} {trusted} {kind} {rate:.0%}", {}).setdefault(str(seed), {})
                    able = [m for m in options.methods if trusted or m in UNTOLD]
                    methods = [m for m in able if options.again or m not in kept]
                    if methods:
                        asked = (name, kind, rate, trusted, seed, methods, options.quick)
                        kept |= machine.fresh("benchmarks.labels_rivals:measured", *asked, cpu_seconds=LIMIT)
                        kept["tree"] = machine.commit(described=True)
                        store.keep(options, record)
