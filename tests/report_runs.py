"""Run directories of four kinds for tests of the report, with records that a study could have written."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevax.core import manifest, toml
from bilevax.core.run_files import FILES, FORMAT, KIND, REPORT
from bilevax.core.run_records import (
    Calibration,
    Candidate,
    Compared,
    Confusion,
    Contribution,
    Data,
    Discrimination,
    Effect,
    End,
    Errors,
    Gap,
    Group,
    Note,
    Pair,
    Paired,
    Part,
    Record,
    Row,
    Rows,
    Scoring,
    Step,
    Threshold,
)

RIVAL = "logistic regression on raw one-hots"
GRID = "single penalty, grid of 20"
RIVALS = (RIVAL, "L1 grid of 20", "gradient boosting")
COLUMNS = ("age", "hours per week", "capital gain", "education", "occupation", "married", "native country", "weight")


def number(name: str, S: int = 1, *, seed: int = 0, size: float = 1.0, missing: int = 0, bins: int = 100) -> Effect:
    """A smooth curve of numbers, with bands that widen at the ends."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.lognormal(3, 1.2, bins) if seed % 3 == 2 else rng.normal(40, 12, bins))
    t = (np.arange(bins) - bins / 2) / bins
    curve = size * np.stack([np.sin((3 + s) * t + seed + s) for s in range(S)], axis=1)
    width = size * (0.1 + 0.6 * np.abs(t) ** 2)[:, None]
    at: list[float | str] = [*x.tolist(), "(missing)"]
    curve, width = np.vstack([curve, np.full(S, -0.3 * size)]), np.vstack([width, [0.2 * size]])
    weight = [*rng.integers(1, 30, bins).astype(float).tolist(), float(missing)]
    return effect(name, at, curve, width, weight, ("linear", "smooth", "rough"))


def levels(name: str, names: Sequence[str], S: int = 1, *, seed: int = 0, size: float = 1.0) -> Effect:
    """Points of levels, the frequent ones sure."""
    rng = np.random.default_rng(seed)
    at = [*names, "(other values)", "(missing)"]
    weight = [*(400.0 / (1 + i) for i in range(len(names))), 0.0, 0.0]
    curve = size * rng.normal(size=(len(at), S)) / 2
    width = size * 2 / np.sqrt(np.array(weight) + 4)[:, None]
    return effect(name, [*at], curve, width, weight, ("levels",))


def effect(
    name: str,
    at: list[float | str],
    curve: np.ndarray,
    width: np.ndarray,
    weight: list[float],
    parts: Sequence[str],
) -> Effect:
    importance = float(np.sqrt(np.mean(curve**2)))
    evidence = 40 * importance - 4
    return Effect(
        name=name,
        importance=importance,
        freedom=4.2,
        log_evidence=evidence,
        droppable=evidence < 1,
        at=at,
        curve=curve.tolist(),
        lower=(curve - width).tolist(),
        upper=(curve + width).tolist(),
        weight=weight,
        parts=[Part(part=part, candidate="additive", penalty=0.3 * 10**i, freedom=1.4) for i, part in enumerate(parts)],
    )


def pair(first: str, second: str, S: int = 1, seed: int = 0) -> Pair:
    rng = np.random.default_rng(seed)
    a, b = np.linspace(17, 80, 12), ["Private", "Self-employed", "State", "(missing)"]
    surface = 0.4 * np.sin(np.arange(12)[:, None, None] / 2 + np.arange(4)[None, :, None] + np.arange(S))
    weight = rng.integers(0, 20, (12, 4)).astype(float)
    return Pair(
        names=(first, second),
        importance=0.21,
        log_evidence=6.2,
        first=[*a.tolist()],
        second=[*b],
        surface=surface.tolist(),
        weight=weight.tolist(),
    )


def compared(
    difference: float, *, kept: str = "additive model", rivals: Sequence[str] = RIVALS, **more: Any
) -> list[Record]:
    """Models, and the kept one less each rival: the first rival is the main one, the others are better than it."""
    out: list[Record] = []
    for i, (name, loss) in enumerate(zip((kept, *rivals), (0.45 + difference, 0.45, 0.44, 0.46), strict=False)):
        extra = {"accuracy": 0.85, **more}
        role = "rival" if i else "kept"
        out.append(Compared(name=name, role=role, loss=loss, loss_se=0.01, seconds=0.4 + 90.9 * i, **extra))
    for i, name in enumerate(rivals):
        d = difference + 0.005 * i
        out.append(Paired(name=name, measure="loss", difference=d, low=d - 0.008, high=d + 0.008, main=i == 0))
    return out


def scored(d: float, rivals: Sequence[str] = RIVALS) -> list[Record]:
    """The same for the score that was asked for."""
    return [
        Paired(name=name, measure="score", difference=d, low=d - 0.01, high=d + 0.01, main=not i)
        for i, name in enumerate(rivals)
    ]


def candidates(difference: float, weights: Sequence[float] = (0.0, 0.0, 0.35, 0.65)) -> list[Record]:
    names = ("one penalty", "a penalty a column", "additive", "additive with pairs")
    out: list[Record] = [
        Candidate(
            name=name, loss=0.46 + i * difference / 4, difference=i * difference / 4, standard_error=0.004, weight=w
        )
        for i, (name, w) in enumerate(zip(names, weights, strict=True))
    ]
    last = Candidate(name="mixture", loss=0.46 + difference, difference=difference, standard_error=0.005, weight=1.0)
    return [*out, last]


def discrimination(label: str, seed: int, *, thresholds: bool) -> Discrimination:
    rng = np.random.default_rng(seed)
    truth = rng.random(400) < 0.3
    p = 1 / (1 + np.exp(-(2.2 * truth - 1.6 + rng.normal(size=400))))
    at = np.unique(p)[::-1]
    found = np.array([[np.sum(p[truth] >= a), np.sum(p[~truth] >= a)] for a in at])
    recall, fpr = found[:, 0] / truth.sum(), found[:, 1] / (~truth).sum()
    precision = found[:, 0] / found.sum(axis=1)
    table = [
        Threshold(
            at=a,
            true_positive=int(np.sum(p[truth] >= a)),
            false_positive=int(np.sum(p[~truth] >= a)),
            true_negative=int(np.sum(p[~truth] < a)),
            false_negative=int(np.sum(p[truth] < a)),
        )
        for a in np.linspace(0.05, 0.95, 19)
    ]
    return Discrimination(
        label=label,
        false_positive_rate=[0.0, *fpr.tolist()],
        true_positive_rate=[0.0, *recall.tolist()],
        area=float(np.trapezoid([0.0, *recall], [0.0, *fpr])),
        recall=[0.0, *recall.tolist()],
        precision=[1.0, *precision.tolist()],
        average_precision=float(np.sum(np.diff([0.0, *recall]) * precision)),
        prevalence=float(truth.mean()),
        thresholds=table if thresholds else [],
    )


def calibration(label: str, scale: float = 1.0, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    groups = []
    for p in np.linspace(0.04, 0.93, 10):
        seen = float(np.clip(p + rng.normal(0, 0.04), 0, 1))
        groups.append(
            Group(
                predicted=scale * p,
                observed=scale * seen,
                low=scale * max(0.0, seen - 0.07),
                high=scale * min(1.0, seen + 0.07),
                rows=40,
            )
        )
    return Calibration(label=label, groups=groups)


def rows(labels: Sequence[str], columns: Sequence[str], cells: Sequence[str] = ("39", "Bachelors", "")) -> list[Record]:
    out: list[Record] = []
    for i, why in enumerate(("hardest", "influential", "typical")):
        for j in range(5):
            adds = [(1.3 - 0.4 * k) * (-1) ** (k + j) for k in range(min(5, len(columns)))]
            out.append(
                Row(
                    why=why,
                    number=1203 + 17 * i + j,
                    truth=labels[0],
                    predicted=labels[-1],
                    probability=None if why == "influential" else 0.02 + 0.01 * j,
                    loss=None if why == "influential" else 3.9 - 0.2 * j,
                    influence=0.4 - 0.05 * j if why == "influential" else None,
                    intercept=-1.2,
                    contributions=[
                        Contribution(name=name, cell=cells[k % len(cells)], adds=a)
                        for k, (name, a) in enumerate(zip(columns, adds, strict=False))
                    ],
                    rest=0.12,
                )
            )
    return out


def confusion(labels: Sequence[str]) -> Confusion:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 6, (len(labels), len(labels))) + 60 * np.eye(len(labels), dtype=int)
    return Confusion(labels=list(labels), rows=counts.tolist())


def data(labels: Sequence[str] = (), features: int = 8) -> Data:
    counts = {label: 400 - 20 * i for i, label in enumerate(labels)}
    quantiles = None if labels else (25.0, 87.0, 140.5, 211.5, 346.0)
    return Data(
        rows=Rows(train=800, validation=0, test=200),
        features=features,
        missing_cells=7,
        classes=counts,
        quantiles=quantiles,
    )


def end(**changes: Any) -> End:
    plain = {"code": "OK", "message": "No failure was seen.", "interrupted": False, "seconds": 91.2}
    return End(**{**plain, **changes})


def effects(columns: Sequence[str], S: int, size: float = 1.0, level_names: Sequence[str] = ()) -> list[Record]:
    """Numbers and categories in turn, the most important first."""
    named = level_names or ("Private", "Self-employed", "State government", "Never worked", "Without pay")
    found = []
    for i, name in enumerate(columns):
        shrunk = size / (1 + 0.5 * i)
        if i % 3 == 2:
            found.append(levels(name, named, S, seed=i, size=shrunk))
        else:
            found.append(
                number(name, S, seed=i, size=shrunk, missing=12 if i % 4 == 1 else 0, bins=100 if i != 4 else 6)
            )
    return sorted(found, key=lambda e: -e.importance)


def win(labels: Sequence[str] = ("<=50K", ">50K"), columns: Sequence[str] = COLUMNS, **more: Any) -> list[Record]:
    """Two classes, clearly better than a linear model."""
    return [
        Note(text="3 rows without a label were left out."),
        Note(text="Column “id” is different in every row: it looks like an identifier.", about="identifier"),
        data(labels, len(columns)),
        Scoring(task="classes", loss="log-loss"),
        *candidates(-0.046),
        *compared(-0.045),
        *effects(columns, 1, **more),
        pair(columns[0], columns[-1]),
        discrimination(labels[1], 0, thresholds=True),
        calibration(labels[1]),
        confusion(labels),
        *rows(labels, columns),
        end(),
    ]


def tie(labels: Sequence[str] = ("no", "yes")) -> list[Record]:
    """Two classes, where one penalty for all columns is kept and the score is the area under the ROC curve."""
    columns = ("income", "rooms", "district")
    return [
        data(labels, 3),
        Scoring(task="classes", loss="log-loss", score="roc_auc", class_weight=True),
        *candidates(0.002, (1.0, 0.0, 0.0, 0.0)),
        *compared(-0.001, kept="linear model", score=0.81),
        *scored(0.002),
        *effects(columns, 1, size=0.3),
        discrimination(labels[1], 1, thresholds=True),
        calibration(labels[1], seed=2),
        confusion(labels),
        *rows(labels, columns),
        end(seconds=0.8),
    ]


def many(labels: Sequence[str] = tuple(f"digit {c}" for c in range(10))) -> list[Record]:
    """Ten classes."""
    columns = COLUMNS[:6]
    return [
        data(labels, 6),
        Scoring(task="classes", loss="log-loss", score="accuracy"),
        *candidates(-0.1, (0.0, 0.0, 1.0, 0.0)),
        *compared(-0.045, score=0.85),
        *scored(0.03),
        *effects(columns, len(labels)),
        pair(columns[0], columns[1], len(labels)),
        *(discrimination(label, c, thresholds=False) for c, label in enumerate(labels)),
        *(calibration(label, seed=c) for c, label in enumerate(labels)),
        confusion(labels),
        *rows(labels, columns),
        end(),
    ]


def regression() -> list[Record]:
    """A number, where the kept model is worse than its rival."""
    rng = np.random.default_rng(0)
    observed = rng.normal(150, 60, 200)
    predicted = 150 + 0.6 * (observed - 150) + rng.normal(0, 25, 200)
    quantiles = {str(q): float(np.quantile(np.abs(observed - predicted), q)) for q in (0.1, 0.25, 0.5, 0.75, 0.9)}
    of_number: list[Record] = []
    for i, name in enumerate(("additive model", *RIVALS)):
        role = "rival" if i else "kept"
        of_number.append(Compared(name=name, role=role, loss=2900 + i, loss_se=180, score=-44.1 - i, seconds=1 + i))
    for i, name in enumerate(RIVALS):
        of_number.append(Paired(name=name, measure="loss", difference=40, low=33, high=47, main=not i))
        of_number.append(Paired(name=name, measure="score", difference=-1.8, low=-2.7, high=-0.9, main=not i))
    columns = ("bmi", "bp", "sex", "s1", "s2", "s5", "s6")
    return [
        data(features=7),
        Scoring(task="number", loss="mean squared error", score="neg_mean_absolute_error"),
        *candidates(-30.0, (0.0, 0.0, 1.0, 0.0)),
        *of_number,
        *effects(columns, 1, size=40.0),
        calibration("", 300.0),
        Errors(predicted=predicted.tolist(), observed=observed.tolist(), quantiles=quantiles, explained=0.51),
        *rows(["212"], columns),
        end(),
    ]


def steps(n: int, *, validation: bool = True) -> list[Record]:
    """Of the tuning of a linear model."""
    return [
        Step(
            step=i,
            code="OK",
            seconds=2.0 + 0.05 * i,
            visits=1000 * (i + 1),
            tuning_loss=0.4 + 0.3 * math.exp(-i / 5),
            validation_loss=0.42 + 0.3 * math.exp(-i / 5) if validation else None,
            gradient_norm=math.exp(-i / 8),
        )
        for i in range(n)
    ]


def linear(n: int = 3, labels: Sequence[str] = ("no", "yes")) -> list[Record]:
    """A linear model whose penalties were tuned on validation rows."""
    parts = Rows(train=600, validation=200, test=200)
    found = compared(-0.012, kept="one penalty per feature", rivals=(GRID,), validation_loss=0.39)
    return [
        Data(rows=parts, features=n, missing_cells=7, terms=n, classes=dict.fromkeys(labels, 100)),
        Scoring(task="classes", loss="log-loss"),
        *steps(40),
        *found,
        Gap(validation_gap=0.01, standard_error=0.002),
        end(visits=40000, steps=40),
    ]


def linear_model(names: Sequence[str], labels: Sequence[str], extra: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Its ``coefficients.json``."""
    rng = np.random.default_rng(0)
    scores = 1 if len(labels) == 2 else len(labels)
    terms: list[dict[str, Any]] = []
    for name in names:
        weight, penalty = rng.normal(size=scores).round(6).tolist(), float(np.exp(rng.normal()))
        numbers = {"mean": 1.0, "scale": 2.0, "fill": 0.5}
        terms.append({"column": name, "kind": "number", "weight": weight, "penalty": penalty, **numbers})
    return {
        "format": "bilevax-linear-1",
        "target": labels[0],
        "classes": list(labels),
        "intercept": [0.1] * scores,
        "terms": [*terms, *extra],
    }


def write_linear(
    directory: Path,
    names: Sequence[str] = ("age", "height", "weight"),
    labels: Sequence[str] = ("no", "yes"),
    *,
    records: Sequence[Record] | None = None,
    extra: Sequence[dict[str, Any]] = (),
) -> Path:
    """A run directory of a linear model."""
    config = {
        "data": {"table": "table.csv", "target": labels[0], "classes": list(labels)},
        "tune": {"model": "linear", "penalty_per": "feature", "seed": 0},
        "method": {"name": "stochastic", "reason": "because table.csv"},
        "versions": {"bilevax": "0.1.0"},
    }
    found = linear(len(names), labels) if records is None else records
    return write(directory, found, config=config, model=linear_model(names, labels, extra))


RUNS = {"win": win, "tie": tie, "many": many, "regression": regression}


def config_of(records: Sequence[Record], table: str = "table.csv", target: str = "income") -> dict[str, dict[str, Any]]:
    found = next((r for r in records if isinstance(r, Data)), None)
    return {
        "data": {"table": table, "target": target, "classes": list(found.classes) if found else []},
        "tune": {"model": "additive", "seed": 0},
        "versions": {"bilevax": "0.1.0"},
    }


def write(
    directory: Path,
    records: Sequence[Record],
    *,
    config: dict[str, dict[str, Any]] | None = None,
    model: dict[str, Any] | None = None,
    running: bool = False,
) -> Path:
    """A run directory of these records, sealed."""
    directory.mkdir(parents=True, exist_ok=True)
    config = config_of(records) if config is None else config
    (directory / "config.toml").write_text(toml.encode(config), encoding="utf-8")
    (directory / "metrics.jsonl").write_text("".join(f"{r.model_dump_json()}\n" for r in records), encoding="utf-8")
    plain = {"format": "bilevax-additive-1", "classes": config["data"]["classes"]} if model is None else model
    (directory / "coefficients.json").write_text(json.dumps(plain))
    return seal(directory, running=running)


def seal(directory: Path, *, running: bool = False) -> Path:
    """With a manifest: of a finished run, or of one that goes on, none of whose files is listed."""
    there = [name for name in FILES if name != REPORT and (directory / name).exists()]
    listed = {name: manifest.fingerprint((directory / name).read_bytes()) for name in there}
    if running:
        manifest.write(directory, KIND, FORMAT, {}, {"state": "running", "config": {}})
    else:
        manifest.write(directory, KIND, FORMAT, listed, {"state": "finished", "interrupted": False})
    return directory
