"""Does ``bilevax tune`` serve a table of more rows than memory holds, and what does a pass over them cost?

A set of Parquet files is made: six columns of numbers and a category with effects on a number, nine columns and a
category without, some cells missing, as pyarrow writes them by default. Then

- *tune*: ``bilevax tune DIR`` in a process of its own: does it end, its largest anonymous resident
  memory (goal: 2.5 GB), and whether the columns without effect, and those alone, may be dropped;
- *equal*: the model of all effects, chosen on some rows and fitted in passes, against the one tuned on all rows in
  memory: root mean square of the difference of their predictions over their standard deviation (goal: .001);
- *passes*: seconds of each kind of pass over those of ``pyarrow.dataset`` reading the same columns (goal: 2); where
  other work takes the processor, the seconds of its time say more.

``--gb`` is the size of the set of *tune*; the other parts run on one of ``--held`` GB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, store, tables

SIGNAL = ("wave", "step", "line", "bend", "cut", "rare")
NOISE = tuple(f"noise{j}" for j in range(9))
MEMORY, EQUAL, PASS = 2.5, 1e-3, 2.0
ROWS_OF_A_FILE, ROWS_OF_A_GROUP = 2_000_000, 131_072
RUN = "from bilevax.cli.entry import main; main()"
PARTS = ("tune", "equal", "passes")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gb", type=float, default=10.0, help="of the set that is tuned on; default %(default)s")
    parser.add_argument("--held", type=float, default=1.0, help="of the set of the other parts; default %(default)s")
    parser.add_argument("--part", choices=PARTS, help="one alone")
    parser.add_argument("--folder", type=Path, help="where sets are made, and kept; by default one that is removed")


def made(folder: Path, size: float, seed: int = 0) -> Path:
    """A set of so many bytes, which is made once."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    rng, out, number = np.random.default_rng(seed), folder / f"set{size:.3g}", 0
    rows = int(min(ROWS_OF_A_FILE, size / 130.0))
    while not out.exists() or sum(file.stat().st_size for file in out.iterdir()) < size:
        out.mkdir(parents=True, exist_ok=True)
        x = dict(zip((*SIGNAL, *NOISE), rng.normal(size=(len(SIGNAL + NOISE), rows)), strict=True))
        x["line"] = np.exp(x["line"])
        place, colour = rng.integers(0, 40, rows), rng.integers(0, 30, rows)
        x["step"][rng.random(rows) < 0.03] = np.nan
        x["noise0"][rng.random(rows) < 0.1] = np.nan
        y = np.sin(2.0 * x["wave"]) + 0.5 * (np.nan_to_num(x["step"], nan=2.0) > 0.3) + 0.1 * np.log(x["line"])
        y += 0.2 * np.abs(x["bend"]) + 0.3 * (x["cut"] > 1.0) + 0.5 * (x["rare"] > 2.0) + 0.02 * (place % 7)
        columns = {**x, "place": np.char.add("p", place.astype(str)), "colour": np.char.add("c", colour.astype(str))}
        table = pa.table({**columns, "y": y + rng.normal(size=rows)})
        parquet.write_table(table, out / f"part{number:04d}.parquet", row_group_size=ROWS_OF_A_GROUP)
        number += 1
    return out


def anonymous(process: "subprocess.Popen[str]") -> int:
    """The largest RssAnon that the process has while it runs, in bytes."""
    most = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        most = max([most, *(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.05)
    return most


def tuned(data: Path, folder: Path) -> list[dict[str, Any]]:
    """``bilevax tune`` of the set."""
    size = sum(file.stat().st_size for file in data.iterdir()) / 1e9
    out, begun = folder / "run", time.perf_counter()
    command = [sys.executable, "-c", RUN, "tune", str(data), "--target", "y", "--out", str(out), "--force"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    assert process.stdout is not None
    lines = process.stdout
    reader = threading.Thread(target=lambda: said.extend(print(line, end="") or line for line in lines))
    reader.start()
    most = anonymous(process) / 1e9
    reader.join()
    seconds = time.perf_counter() - begun
    name = f"tune, {size:.1f} GB"
    if process.wait():
        return [{"what": f"{name}: ends", "value": False, "goal": True, "met": False, "note": said[-1:]}]
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    dropped = {r["name"] for r in records if r["kind"] == "effect" and r["droppable"]}
    wanted = {*NOISE, "colour"}
    wrong = sorted(dropped ^ wanted)
    return [
        {"what": f"{name}: minutes", "value": seconds / 60.0, "note": f"{process.returncode=}"},
        {"what": f"{name}: RssAnon, GB", "value": most, "goal": MEMORY, "met": most < MEMORY},
        {"what": f"{name}: columns wrongly dropped or kept", "value": len(wrong), "goal": 0, "met": not wrong,
         "note": ", ".join(wrong) or f"{len(wanted)} to be dropped, {len(SIGNAL) + 1} not"},
    ]  # fmt: skip


def rows_of(data: Path) -> Any:
    """The set."""
    from bilevax.study import TuneSettings
    from bilevax.study.row_set import RowSet
    from bilevax.tables.file_set import files_of, open_set

    settings = TuneSettings(pairs=False)
    files = files_of(str(data))
    assert files is not None
    return RowSet(open_set(data.name, files, settings.reading), "y", settings)


def ready(data: Path, every: Any = None, folder: Path | None = None) -> tuple[Any, Any, Any]:
    """The set, the rows of its sample that train, and a model of all effects that is to be fitted to every row.

    What passes keep is in a folder.
    """
    from bilevax.sklearn import TunedAdditiveRegressor
    from bilevax.sklearn.additive_base import learn_from
    from bilevax.study import TuneSettings
    from bilevax.study.preparation import prepare

    settings = TuneSettings(pairs=False)
    every = every or rows_of(data)
    prepared = prepare(every.sample(), "y", settings)
    if folder is not None:
        every.keep_in(folder)
    every.begin(prepared, lambda: False)
    estimator, rows = TunedAdditiveRegressor(choose=False, pairs=False, random_state=0), prepared.split.train
    learn_from(estimator, every)
    return every, (prepared.features.take(rows), prepared.target.values[rows]), estimator


def equal(data: Path) -> list[dict[str, Any]]:
    """In passes against in memory, of the rows that train, by what both predict of some of them."""
    import numpy as np

    from bilevax.sklearn import TunedAdditiveRegressor
    from bilevax.tables.file_set import concatenated

    every, rows, passed = ready(data)
    every.count()
    passed.fit(*rows)
    parts, y = zip(*((table.take(there), y) for table, there, y in every.rows_of_pass()), strict=True)
    whole, values = concatenated(every.pieces, parts), np.concatenate(y)
    del parts, y
    begun = time.perf_counter()
    known = TunedAdditiveRegressor(choose=False, pairs=False, random_state=0).fit(whole, values)
    seconds = time.perf_counter() - begun
    some = whole.take(np.arange(0, whole.rows, max(whole.rows // 100_000, 1)))
    found, there = (model.model_.predict_mean(some) for model in (passed, known))
    value = float(np.sqrt(np.mean((found - there) ** 2)) / np.std(there))
    same = set(passed.drop_columns_) == set(known.drop_columns_)
    note = f"{whole.rows:,} rows; in memory {seconds:.0f} s; the same columns to drop: {'yes' if same else 'NO'}"
    return [
        {"what": "predictions, passes / memory", "value": value, "goal": EQUAL, "met": value <= EQUAL, "note": note}
    ]


def passes(data: Path) -> list[dict[str, Any]]:
    """Each pass against reading, the median of five before it; pages are in the system's cache if there is room."""
    import pyarrow.dataset

    def read() -> tuple[float, float]:
        begun = time.perf_counter(), time.process_time()
        for _ in pyarrow.dataset.dataset(data).to_batches():
            pass
        return time.perf_counter() - begun[0], time.process_time() - begun[1]

    read()
    every, found = rows_of(data), dict[str, tuple[float, ...]]()
    inner = every._gone_through

    def timed(name: str, *of: Any) -> Iterator[Any]:
        reading = map(median, zip(*(read() for _ in range(5)), strict=True))
        begun = time.perf_counter(), time.process_time()
        yield from inner(name, *of)
        found[name] = time.perf_counter() - begun[0], time.process_time() - begun[1], *reading

    every._gone_through = timed
    with tempfile.TemporaryDirectory() as folder:
        _, rows, model = ready(data, every, Path(folder))
        every.count()
        model.fit(*rows)
    return [
        {"what": f"{name} / reading", "value": s / r, "goal": PASS, "met": s <= PASS * r,
         "note": f"{s:.1f} s and {r:.1f} s, of processor time {own:.1f} s and {its:.1f} s, {every.rows:,} rows"}
        for name, (s, own, r, its) in found.items()
    ]  # fmt: skip


def main(options: argparse.Namespace) -> None:
    parts = [options.part] if options.part else PARTS
    folder = options.folder or Path(tempfile.mkdtemp())
    size, held = (0.004, 0.004) if options.quick else (options.gb, options.held)
    rows: list[dict[str, Any]] = []
    table = tables.Table("", "figure", "goal", "met", "note")
    try:
        for part in parts:
            data = made(folder, 1e9 * (size if part == "tune" else held))
            for row in tuned(data, folder) if part == "tune" else {"equal": equal, "passes": passes}[part](data):
                if options.quick:  # no goal applies
                    row = {k: v for k, v in row.items() if k not in ("goal", "met")}
                table(*map(row.get, ("what", "value", "goal", "met", "note")))
                rows.append(row)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    store.keep(options, {"setting": machine.setting(), "rows": rows})
