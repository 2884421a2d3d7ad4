"""Parquet files, sound ones and damaged ones, and what pyarrow says is in them.

A file is either refused by one of our errors in one sentence, or holds what pyarrow, which verifies the checksums of
pages too, finds in the same bytes: each cell as Python's value is, made a number as Python makes it one (days since
1970-01-01 of dates, durations and times), text without the blanks at its ends, missing where it is null, NaN or empty;
whole numbers of 2^53 and more in size make a column text. Where pyarrow reads nothing we read nothing.
"""

import datetime
import decimal
import io

import numpy as np
import pyarrow as pa
from pyarrow import parquet

EPOCH = datetime.date(1970, 1, 1).toordinal()
FIXED = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.bool_()]
FIXED += [
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.date32(),
    pa.date64(),
    pa.time32("s"),
    pa.time32("ms"),
    pa.time64("us"),
]
FIXED += [pa.time64("ns"), *(pa.timestamp(unit, tz) for unit in ("s", "ms", "us", "ns") for tz in (None, "UTC"))]
FIXED += [pa.duration("s"), pa.duration("us"), pa.duration("ns"), pa.timestamp("ms", "Asia/Tokyo"), pa.null()]
NESTED = [
    pa.list_(pa.int64()),
    pa.struct([("a", pa.int64())]),
    pa.map_(pa.string(), pa.int64()),
    pa.binary(),
    pa.binary(4),
]


# Files


def column(rng, rows):
    """Cells of one type, some of them null."""
    null = rng.random(rows) < rng.choice([0.0, 0.2, 1.0], p=[0.5, 0.45, 0.05])
    kind = rng.integers(0, 12)
    if kind == 0:
        return pa.array([None] * rows, NESTED[rng.integers(0, len(NESTED))])
    if kind == 1:
        scale = int(rng.integers(0, 5))
        cells = [decimal.Decimal(int(v)).scaleb(-scale) for v in rng.integers(-(10**9), 10**9, rows)]
        return pa.array([None if n else c for n, c in zip(null, cells, strict=True)], pa.decimal128(30, scale))
    if kind <= 5:
        words = rng.choice(
            ["a", "b c", "é", "", " x ", "NA", "日本", "1", "2.5", "two\nlines", "z" * 300], rows
        ).tolist()
        of = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())][rng.integers(0, 3)]
        return pa.array([None if n else w for n, w in zip(null, words, strict=True)], pa.string()).cast(of)
    of = FIXED[rng.integers(0, len(FIXED))]
    if pa.types.is_null(of):
        return pa.nulls(rows)
    if pa.types.is_boolean(of):
        return pa.array(rng.random(rows) < 0.5, mask=null)
    if pa.types.is_floating(of):
        cells = rng.normal(size=rows) * 10.0 ** rng.integers(-3, 4)
        cells[rng.random(rows) < rng.choice([0.0, 0.1])] = rng.choice([np.nan, np.inf])
        return pa.array(cells.astype(of.to_pandas_dtype()), mask=null)
    bits = min(of.bit_width, 63)
    most = rng.choice([100, 2 ** (bits - 1) - 1, 86_399], p=[0.6, 0.2, 0.2])
    cells = rng.integers(0, min(int(most), 2 ** (bits - 1) - 1), rows)
    if pa.types.is_time(of):
        cells %= 86_400
    if of in (pa.timestamp("s"), pa.timestamp("s", "UTC")):
        cells %= 10**15  # written as milliseconds
    return (
        pa.array(cells.astype(np.int32 if bits == 32 else np.int64), mask=null)
        .cast(pa.int32() if bits == 32 else pa.int64())
        .cast(of, safe=False)
    )


def written(rng):
    """A sound file, written in one of many ways."""
    rows, columns = int(rng.integers(1, 200)), int(rng.integers(1, 5))
    table = pa.table([column(rng, rows) for _ in range(columns)], names=[f"c{j}" for j in range(columns)])
    out = io.BytesIO()
    parquet.write_table(
        table,
        out,
        compression=str(rng.choice(["none", "snappy", "gzip", "zstd"])),
        use_dictionary=bool(rng.random() < 0.5),
        data_page_version=str(rng.choice(["1.0", "2.0"])),
        write_page_checksum=bool(rng.random() < 0.5),
        row_group_size=int(rng.choice([7, 50, 1000])),
        data_page_size=int(rng.choice([64, 1 << 20])),
        write_statistics=bool(rng.random() < 0.5),
    )
    return out.getvalue()


def mutated(rng, data):
    """The file after one change: in its pages, its footer, its length, or anywhere."""
    out = bytearray(data)
    kind, footer = rng.integers(0, 8), int.from_bytes(data[-8:-4], "little")
    start, end = [(4, len(data) - 8 - footer), (len(data) - 8 - footer, len(data) - 8), (0, len(data))][
        rng.integers(0, 3)
    ]
    at = int(rng.integers(start, max(start + 1, end)))
    if kind <= 3:
        for place in (at + rng.integers(0, 8, rng.integers(1, 4))).tolist():
            out[place % len(out)] ^= 1 << rng.integers(0, 8)
    elif kind == 4:
        out[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
    elif kind == 5:
        del out[at : at + int(rng.integers(1, 50))]
    elif kind == 6:
        out[at:at] = out[at : at + int(rng.integers(1, 20))]
    else:
        out[at : at + 1] = b"\xff\x7f\x00\x80\x01"[int(rng.integers(0, 5)) :][:1]
    return bytes(out)


def files(seed, number):
    """So many files; one in five is not mutated."""
    for i in range(number):
        rng = np.random.default_rng([seed, i])
        data = written(rng)
        for _ in range(0 if i % 5 == 0 else int(rng.integers(1, 3))):
            data = mutated(rng, data)
        yield i, data, i % 5 == 0


# What pyarrow reads


def same(table, data):
    """Whether the table is what pyarrow finds; the reason if not."""
    try:
        found = parquet.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as e:
        return f"pyarrow reads nothing: {e}"
    if tuple(found.column_names) != table.names or found.num_rows != table.rows:
        return f"{found.num_rows} rows of {found.column_names}"
    return next((fault for c in table.columns if (fault := differs(c, found.column(c.name)))), "")


def differs(column, values):
    """Why a column is not what it is by pyarrow; empty if it is."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cells = [None if cell is None else cell.strip(BLANKS) or None for cell in values.to_pylist()]
        return "" if column.values.tolist() == cells else f"{column.name}: other texts"
    truth = [number(cell, kind) for cell in counts(values, kind).to_pylist()]
    if column.kind == "text":
        whole = [None if x is None else str(int(x)) for x in truth]
        long = any(x is not None and abs(x) >= 2**53 for x in truth)
        return "" if long and column.values.tolist() == whole else f"{column.name}: {kind} as text"
    expected = np.array([np.nan if x is None else float(x) for x in truth])
    if np.array_equal(column.values, expected, equal_nan=True):
        return ""
    return f"{column.name}: {kind} {column.values[:4]} of {expected[:4]}"


# What pyarrow takes for blanks at the ends of a text.
BLANKS = (
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
)
BLANKS += "\u2028\u2029\u202f\u205f\u3000"


def counts(values, kind):
    """Moments and durations as whole numbers of their unit."""
    if pa.types.is_temporal(kind):
        return values.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return values


PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def number(cell, kind):
    if cell is None or not pa.types.is_temporal(kind):
        return cell
    if pa.types.is_date32(kind):
        return cell
    per_day = PER_DAY["ms" if pa.types.is_date64(kind) else kind.unit]
    if per_day > PER_DAY["us"]:  # nanoseconds are cut
        cell, per_day = abs(cell) // 1000 * (1 if cell > 0 else -1), PER_DAY["us"]
    return float(cell * (PER_DAY["us"] // per_day)) / 86_400e6
