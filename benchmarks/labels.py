"""Does LabelCleaner find wrong labels better than cleanlab and losses of trusted rows, and know how many there are?

Digits, Adult, Fashion-MNIST (10,000 rows); 20 and 40 % of the labels flipped, by class or uniformly; 200, 500 or 1,000
trusted rows; seeds that had no part in any choice. Beside it, with models of the same kind: cleanlab (the best of its
five scores in each run, ``pip install cleanlab``), the loss under a model of the trusted rows, gold loss correction,
plain EM, and a ceiling that knows the clean labels and the matrix. Area under the ROC of flipped against other rows,
precision at the true number, calibration, expected over true number, test accuracy after. What is measured is not
measured again; --again measures anew.
"""

import argparse
from typing import Any

import numpy as np

from benchmarks import machine, store, tables
from benchmarks.labels_rivals import METHODS, TRUSTED

SEEDS = (100, 101, 102, 103, 104)
KINDS = tuple((kind, rate) for kind in ("class", "uniform") for rate in (0.2, 0.4))
SETS = ("digits", "adult", "fashion")
ABOUT = ("auc", "precision", "ece", "expected", "accuracy")
LIMIT = 3600


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=SETS, metavar="DATA", help=", ".join(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--trusted", nargs="+", type=int, metavar="ROWS", help="of those of the data set")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=", ".join(METHODS))  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--show", action="store_true", help="measure nothing: the tables of what is there")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    record = store.kept(options)
    runs = record.setdefault("runs", {})
    if not options.show:
        measure(options, record, runs)
    for about in ABOUT:
        print(f"\n{about}\n{text(runs, about)}")
    tables.checks(checks(runs))


def measure(options: argparse.Namespace, record: dict[str, Any], runs: dict[str, Any]) -> None:
    """Every run that is asked for and not there, seed by seed."""
    for name in options.only or (("digits",) if options.quick else SETS):
        for seed in options.seeds[: 1 if options.quick else None]:
            for trusted in [m for m in TRUSTED[name] if not options.trusted or m in options.trusted]:
                for kind, rate in KINDS[: 1 if options.quick else None]:
                    kept = runs.setdefault(f"{name} {trusted} {kind} {rate:.0%}", {}).setdefault(str(seed), {})
                    methods = [m for m in options.methods if options.again or m not in kept]
                    if methods:
                        asked = (name, kind, rate, trusted, seed, methods, options.quick)
                        kept |= machine.fresh("benchmarks.labels_rivals:measured", *asked, cpu_seconds=LIMIT)
                        kept["tree"] = machine.commit(described=True)
                        store.keep(options, record)


def mean(of_seeds: dict[str, Any], method: str, about: str) -> float | None:
    """Over the seeds that have it."""
    values = [run[method][about] for run in of_seeds.values() if about in run.get(method, {})]
    return float(np.mean(values)) if values else None


def text(runs: dict[str, Any], about: str) -> str:
    methods = [m for m in METHODS if any(mean(r, m, about) is not None for r in runs.values())]
    head = ("cell", "seeds", *methods)
    rows = [(cell, len(r), *(shown(mean(r, m, about)) for m in methods)) for cell, r in runs.items()]
    return tables.text(head, rows)


def shown(x: float | None) -> str:
    return "" if x is None else f"{x:.4f}"


def checks(runs: dict[str, Any]) -> list[tables.Check]:
    """The goals, by their worst cell."""

    def worst(of: Any) -> tuple[float, str]:
        found = [(of(r), cell) for cell, r in runs.items() if of(r) is not None]
        return min(found, default=(float("nan"), "none"))

    def over(about: str, rival: str) -> Any:
        def margin(r: dict[str, Any]) -> float | None:
            ours, theirs = mean(r, "cleaner", about), mean(r, rival, about)
            return None if ours is None or theirs is None else ours - theirs

        return margin

    goals = [("auc", "cleanlab", 0.0), ("precision", "cleanlab", 0.0), ("auc", "trusted", 0.0), ("auc", "em", -0.005),
             ("auc", "ceiling", -0.015), ("accuracy", "ceiling", -0.025), ("accuracy", "cleanlab", 0.0)]  # fmt: skip
    out: list[tables.Check] = []
    for about, rival, least in goals:
        value, cell = worst(over(about, rival))
        out.append((f"{about} over {rival}'s, least: {cell}", f"{value:+.4f}", f"at least {least}", value >= least))
    for about, of, most in (
        ("calibration error", lambda r: mean(r, "cleaner", "ece"), 0.03),
        ("expected over true number, off by", lambda r: off(r), 0.15),
    ):
        value, cell = worst(lambda r, of=of: None if of(r) is None else -of(r))
        out.append((f"{about}, most: {cell}", f"{-value:.4f}", f"at most {most}", -value <= most))
    return out


def off(of_seeds: dict[str, Any]) -> float | None:
    expected = mean(of_seeds, "cleaner", "expected")
    return None if expected is None else abs(expected - 1.0)
