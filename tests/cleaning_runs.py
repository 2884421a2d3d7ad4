"""Run directories of `bilevax clean` for tests of its report, with records that a study could have written."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bilevax.core import manifest, toml
from bilevax.core.cleaning_records import KeptAside, Labelled, Shown, Suspect, Verified, Wrong
from bilevax.core.run_files import FORMAT, KIND
from bilevax.core.run_records import Calibration, End, Group, Note, Record

COLUMNS = ("age", "hours per week", "education")


def labelled(labels: Sequence[str], rows: int = 900, trusted: int = 50) -> Labelled:
    counts = {label: rows // len(labels) for label in labels}
    where = "trusted.csv" if trusted else ""
    return Labelled(rows=rows, classes=counts, trusted=trusted, trusted_from=where, features=30, missing_cells=7)


def wrong(
    labels: Sequence[str], expected: tuple[float, float, float] = (90.0, 71.5, 108.0), suspicious: int = 84
) -> Wrong:
    C = len(labels)
    noise = np.full((C, C), 0.1 / (C - 1)) + np.eye(C) * (0.9 - 0.1 / (C - 1))
    flows = np.full((C, C), 0.3) + np.eye(C) * 300
    # of the first class most are given as the second
    flows[0, 1] = 41.0
    low, high = (np.clip(noise + d, 0, 1).tolist() for d in (-0.02, 0.03))
    return Wrong(
        expected=expected,
        suspicious=suspicious,
        labels=list(labels),
        noise=noise.tolist(),
        low=low,
        high=high,
        flows=flows.tolist(),
    )


def suspects(
    labels: Sequence[str], cells: Sequence[str], n: int = 30, *, pixels: int = 0, truth: bool = False
) -> list[Record]:
    rng = np.random.default_rng(0)
    shown = Shown(
        columns=() if pixels else COLUMNS, features=30, kept=("id",), image=(pixels, pixels) if pixels else None
    )
    return [
        shown,
        *(
            Suspect(
                number=1 + 37 * i % 101,
                probability=0.99 - 0.02 * i,
                given=labels[i % len(labels)],
                suggested=labels[(i + 1) % len(labels)],
                truth=labels[(i + 1 + i % 5 // 4) % len(labels)] if truth else None,
                cells=() if pixels else tuple(cells[(i + j) % len(cells)] for j in range(3)),
                kept=(f"P{i:03d}",),
                pixels=tuple(rng.integers(0, 256, pixels**2).tolist()),
            )
            for i in range(n)
        ),
    ]


def verified() -> list[Record]:
    groups = [
        Group(predicted=p, observed=min(1.0, p + 0.02), low=max(0.0, p - 0.08), high=min(1.0, p + 0.1), rows=60)
        for p in np.linspace(0.05, 0.95, 10).tolist()
    ]
    found = Verified(
        rows=900,
        wrong=93,
        expected=90.0,
        suspicious=84,
        right=80,
        corrected=79,
        at_number=0.91,
        area=0.994,
        calibration_error=0.013,
    )
    return [found, Calibration(label="wrong", groups=groups)]


def records(
    labels: Sequence[str] = ("no", "yes", "maybe"), cells: Sequence[str] = ("39", "Bachelors", "")
) -> list[Record]:
    """Of a table."""
    about = [Note(text="column 'code' alone predicts the target: it is a leak", about="leak"), Note(text="a note")]
    return [*about, labelled(labels), wrong(labels), *suspects(labels, cells), *_end()]


def images() -> list[Record]:
    """Of images, with the truth known."""
    labels = tuple(map(str, range(10)))
    known = [labelled(labels), wrong(labels), *verified(), *suspects(labels, (), 40, pixels=8, truth=True)]
    return [*known, *_end()]


def aside() -> list[Record]:
    """Of two classes in a wide table, where half of the trusted rows were kept aside."""
    said = [KeptAside(rows=25, area=0.987, calibration_error=0.021), verified()[1]]
    labels = ("no", "yes")
    return [labelled(labels), wrong(labels), *suspects(labels, ("1.5", "x")), *said, *_end()]


def few(labels: Sequence[str] = ("no", "yes")) -> list[Record]:
    """Nothing is wrong, and no row is trusted."""
    said = Note(text="no row is trusted: it is assumed that most labels are right", about="model")
    found = wrong(labels, (4.2, 0.0, 9.9), 0).model_copy(update={"flows": [[400.0, 0.2], [0.1, 499.0]]})
    return [said, labelled(labels, trusted=0), found, *suspects(labels, ("1", "2"), 20), *_end()]


def _end() -> list[Record]:
    return [End(code="OK", message="", interrupted=False, seconds=12.0)]


RUNS = {"table": records, "images": images, "few": few, "aside": aside}


def write(directory: Path, found: Sequence[Record], table: str = "table.csv", target: str = "income") -> Path:
    """A finished run directory of these records."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "data": {"table": table, "target": target},
        "clean": {"model": "linear", "seed": 0},
        "versions": {"a": "1"},
    }
    contents = {
        "config.toml": toml.encode(config).encode(),
        "metrics.jsonl": "".join(f"{json.dumps(r.model_dump(mode='json'))}\n" for r in found).encode(),
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    listed = {name: manifest.fingerprint(content) for name, content in contents.items()}
    manifest.write(directory, KIND, FORMAT, listed, {"state": "finished", "interrupted": False})
    return directory
