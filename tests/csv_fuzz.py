"""Delimited files, sound ones and mutated ones, and what pandas and Python say is in them.

A file is either refused by one of our errors in one sentence, or read as others read it. "As others": there is a
delimiter with which pandas (every cell as text, blanks at the ends of a cell left out, no row for a blank line) finds
the same names and cells, and, if the header comes first as it was, as many columns as were written. Of each cell,

    text      is the cell, None where it is empty
    numbers   are missing where the cell is empty or one of MARKS; else one convention for the whole column (decimal
              mark and thousands separator, percent, currency, accountants' minus, times of day) makes each cell the
              number, and no other convention makes other numbers of them
    booleans  are true and false in any case
    dates     are what pandas makes of them

We may refuse what others read, for that is what a stricter rule is; we may not read another value.
"""

import io
import re
import warnings

import numpy as np
import pandas as pd

from bilevax.tables.csv_content import SAMPLED

DELIMITERS = ",;\t|"
MARKS = re.compile(
    r"\?|\.|na|n/a|n\.a\.|#n/?a|<na>|null|none|nat|[+-]?nan(\([^()]*\))?|[+-]?1\.#(qnan|snan|ind)\d*", re.IGNORECASE
)
NASTY = [
    b"\0",
    b'"',
    b"'",
    b"\r",
    b"\n",
    b"\r\n",
    b",",
    b";",
    b"\t",
    b"|",
    b"\xff",
    b"\xc3",
    b"\xe9",
    b"\xa0",
    b"#",
    b" ",
]
NASTY += [
    "\u202e".encode(),
    "\u2028".encode(),
    b"\x1b[31m",
    b"-",
    b"1e999",
    b"nan",
    b"=",
    b"\x0b",
    b"\x0c",
    b"\x85",
    b"\x1a",
]


# Files


def column(rng, rows):
    """Cells of one kind, as one writes them."""
    kind = rng.integers(0, 13)
    x = rng.normal(size=rows) * 10.0 ** rng.integers(-3, 7)
    if kind == 0:
        cells = [str(int(v)) for v in x]
    elif kind == 1:
        cells = [repr(float(v)) for v in x]
    elif kind == 2:
        cells = [f"{v:,.2f}" for v in x]
    elif kind == 3:
        separators = str.maketrans(",.", str(rng.choice([".,", " ,", "'."])))
        cells = [f"{v:,.2f}".translate(separators) for v in x]
    elif kind == 4:
        cells = [f"{v:.1f}%" for v in x]
    elif kind == 5:
        style = str(rng.choice(["${:.2f}", "{:.2f} €", "({:.2f})", "{:.2f}-"]))
        cells = [style.format(abs(v)) for v in x]
    elif kind == 6:
        cells = [str(day) for day in np.datetime64("2024-01-01") + rng.integers(-9999, 9999, rows)]
    elif kind == 7:
        cells = [f"{h:02}:{m:02}:{s:02}" for h, m, s in rng.integers(0, [24, 60, 60], (rows, 3))]
    elif kind == 8:
        cells = rng.choice(["true", "False", "TRUE"], rows).tolist()
    elif kind == 9:
        cells = [f"{v:.3e}" for v in x]
    elif kind == 10:
        cells = rng.choice(
            ["a", "b c", "é", "x,y", 'say "so"', "two\nlines", "p;q", "1|2", "NA", "日本"], rows
        ).tolist()
    elif kind == 11:
        cells = [f"{v:05}" for v in rng.integers(0, 99999, rows)]
    else:
        cells = [str(v) for v in rng.integers(2**52, 2**62, rows)]
    if rng.random() < 0.4:
        mark = rng.choice(["", "NA", "?", "nan(1)", "-", "null", "unknown"])
        cells = [str(mark) if gone else cell for cell, gone in zip(cells, rng.random(rows) < 0.2, strict=True)]
    return cells


def written(rng):
    """A sound file, its delimiter and its header."""
    rows, columns = int(rng.integers(1, 40)), int(rng.integers(1, 7))
    delimiter, end = str(rng.choice(list(DELIMITERS))), str(rng.choice(["\n", "\r\n", "\r"]))
    names = [str(rng.choice(["a", "b c", "é", "n"])) + str(j) for j in range(columns)]
    lines = [names, *zip(*(column(rng, rows) for _ in names), strict=True)]
    if rng.random() < 0.02:
        lines[-1] = [*lines[-1][:-1], "z" * int(rng.integers(60_000, 3_000_000))]

    def cell(text):
        quoted = any(c in text for c in (*DELIMITERS, '"', "\n", "\r")) or rng.random() < 0.05
        return '"' + text.replace('"', '""') + '"' if quoted else text

    text = end.join(delimiter.join(map(cell, line)) for line in lines) + (end if rng.random() < 0.9 else "")
    return text.encode(), delimiter, names


def mutated(rng, data):
    """The file after one change."""
    at, to = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    to, lines = min(to, at + 40), data.splitlines(keepends=True)
    kind = rng.integers(0, 20)
    if kind <= 3:
        return data[:at] + NASTY[rng.integers(0, len(NASTY))] + data[at:]
    if kind == 4:
        return data[:at] + bytes(rng.integers(0, 256, 1, dtype=np.uint8)) + data[at + 1 :]
    if kind == 5:
        return data[:at] + data[to:]
    if kind == 6:
        return data[:to] + data[at:]
    if kind == 7:
        return data[:at]
    if kind == 8:
        rng.shuffle(lines)
        return b"".join(lines)
    if kind == 9:
        return b"".join(line.rstrip(b"\r\n") + b",;\t|"[at % 4 : at % 4 + 1] + b"\n" for line in lines)
    if kind == 10:
        return [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0"][at % 4] + data
    if kind == 11:
        codec = ["latin-1", "utf-16", "utf-32", "utf-16-be", "cp1252"][at % 5]
        return data.decode("utf-8", "replace").encode(codec, "replace")
    if kind == 12:
        return [b"sep=;\n", b"sep=,\r\n", b"sep=\t\n", b"SEP=^\n", b'"sep=|"\n', b"sep=\xff\n"][at % 6] + data
    if kind == 13:
        return [b"# made by hand\n", b"#\n", b"# a,b;c\n\n", b"##\n# x\n", b"#" * 70_000 + b"\n"][at % 5] + data
    if kind == 14:
        return b"".join([*lines[: at % (len(lines) + 1)], b"# a comment\n", *lines[at % (len(lines) + 1) :]])
    if kind == 15:
        return b"".join(b"\n" * int(rng.integers(0, 3)) + line for line in lines)
    if kind == 16:
        return re.sub(rb"\r\n|\r|\n", lambda _: [b"\n", b"\r", b"\r\n"][rng.integers(0, 3)], data)
    if kind == 17:
        return [b"{", b"[", b"<table>", b"PK\3\4", b"\x1f\x8b", b"<?xml ", b'{"a": 1}\n', b" \n \t\n"][at % 8] + data
    if kind == 18:
        return data.replace(b",", b";") if at % 2 else data.replace(b'"', b"")
    return b" ".join(data.split(b" ")) + b"\n\n \n"[: at % 5]


def files(seed, number):
    """So many files with the delimiter and the names they were written with; one in five is not mutated."""
    for i in range(number):
        rng = np.random.default_rng([seed, i])
        data, delimiter, names = written(rng)
        changes = 0 if i % 5 == 0 else int(rng.integers(1, 4))
        for _ in range(changes):
            data = mutated(rng, data)
        yield i, data, delimiter, names, not changes


# What others read


def plain_lines(data):
    """The text below the lines that say how it is to be read, and the delimiter if they say it."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    told = re.match(r'"?sep=([^\s"]|\t)"?[ ]*(?=[\r\n])', text, re.IGNORECASE)
    return (text[told.end() :], told[1]) if told and told[1].isascii() else (text, None)


def headers(text):
    """The text from each line on that may be the header: the first, or the one at which comments end, or before."""
    yield text
    ends = [found.end() for found in re.finditer(r"\r\n|\r|\n", text)]
    for end in ends[: 20 * SAMPLED]:
        below = text[end:].lstrip(" \t")
        before = text[:end].strip()
        if before and not all(
            not line.strip() or line.lstrip(" \t").startswith("#") for line in re.split(r"\r\n|\r|\n", before)
        ):
            return
        if below:
            yield text[end:]


def read_by_pandas(text, delimiter):
    """{name: cells}, blanks at their ends left out; None if pandas reads no table."""
    frame = frame_of(text, delimiter)
    if frame is None:  # rows may end with a delimiter, and the header not
        header = frame_of(text, delimiter, nrows=1)
        frame = None if header is None else frame_of(text, delimiter, names=range(header.shape[1] + 1))
    if frame is None:
        return None
    names, cells = [str(name).removeprefix("\ufeff").strip() for name in frame.iloc[0]], frame.iloc[1:]
    while (
        names and names[-1] in ("", "nan") and not (cells.iloc[:, len(names) - 1].astype(str).str.strip() != "").any()
    ):
        names.pop()
    return {name: [str(cell).strip() for cell in cells.iloc[:, j]] for j, name in enumerate(names)}


def frame_of(text, delimiter, **options):
    """Every cell as text, the header as the first row; None if pandas reads no table."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return pd.read_csv(
                io.StringIO(text, newline=""),
                sep=delimiter,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                header=None,
                na_filter=False,
                **options,
            )
    except (ValueError, OverflowError, pd.errors.ParserWarning, pd.errors.ParserError):
        return None


def same(table, data, delimiter, names):
    """Whether some reading of others is that of the table; the reason if not."""
    text, told = plain_lines(data)
    tried = []
    for other in [told] if told else DELIMITERS:
        for below in headers(text):
            found = read_by_pandas(below, other)
            if found is None or tuple(found) != table.names:
                continue
            tried.append(other)
            if faults := [fault for c in table.columns if (fault := differs(c, found[c.name]))]:
                return faults[0]
            header = delimiter.join(names)
            return (
                f"split at {other!r}"
                if len(found) < len(names)
                and below.lstrip().removeprefix("\ufeff").startswith(header)
                and other not in (delimiter, told)
                else ""
            )
    return "no reading of pandas has these names" if not tried else ""


def differs(column, cells):
    """Why a column is not what its cells say; empty if it is."""
    if len(column.values) != len(cells) and (len(column.values) < len(cells) or any(cells)):
        kept = [cell for cell in cells if (cell if column.kind == "text" else is_there(cell))]
        values = column.values[~column.missing]
        if len(values) != len(kept):
            return f"{column.name}: {len(column.values)} rows, not {len(cells)}"
        return differs(type(column)(column.name, column.kind, values), kept)
    if column.kind == "text":
        return "" if column.values.tolist() == [cell or None for cell in cells] else f"{column.name}: other texts"
    known = [(value, cell) for value, cell in zip(column.values.tolist(), cells, strict=True) if is_there(cell)]
    if len(known) != int((~column.missing).sum()):
        return f"{column.name}: other cells are missing"
    values, known = [value for value, _ in known], [cell for _, cell in known]
    readings = [found for read in READINGS[column.kind] if (found := read(known)) is not None]
    if not known or any(np.array_equal(found, values) for found in readings):
        others = [found for found in readings if not np.array_equal(found, values)]
        return f"{column.name}: may be {others[0][:3]}, too" if others else ""
    return f"{column.name}: {column.kind}s {values[:3]} of {known[:3]}"


def is_there(cell):
    return bool(cell) and not MARKS.fullmatch(cell)


def plain(cells):
    found = [float(c) for c in cells if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", c)]
    return found if len(found) == len(cells) else None


def convention(decimal, thousands):
    def read(cells):
        # In accounts a number in brackets is below 0, but not if all are.
        brackets = any(not c.startswith("(") for c in cells)
        found = [number(c, decimal, thousands, brackets) for c in cells]
        if None in found or len({sign for _, sign in found}) > 1:
            return None
        return [x for x, _ in found]

    return read


def number(cell, decimal, thousands, brackets):
    """The number and the sign of its unit, if that is how it is written."""
    cell = re.sub("[\u00a0\u202f\u2009]", " ", cell)
    cell = re.sub("[’`]", "'", cell)
    cell = "-" + cell[1:] if cell.startswith("\u2212") else cell
    if brackets and (found := re.fullmatch(r"\(([^()]*)\)", cell)):
        cell = "-" + found[1]
    if found := re.fullmatch(r"([^-]*[0-9]) ?-", cell):
        cell = "-" + found[1]
    unit = "".join(c for c in cell if c in "%$€£¥")
    bare = re.sub(r"\s?[%$€£¥]$", "", re.sub(r"^([+-]?)\s?[$€£¥]\s?", r"\1", cell))
    groups = rf"[0-9]{{1,3}}({re.escape(thousands)}[0-9]{{3}})+|" if thousands else ""
    point = re.escape(decimal)
    if len(unit) > 1 or not re.fullmatch(
        rf"[+-]?(({groups}[0-9]+)({point}[0-9]*)?|{point}[0-9]+)([eE][+-]?[0-9]+)?", bare
    ):
        return None
    value = float((bare.replace(thousands, "") if thousands else bare).replace(decimal, "."))
    return (value / 100.0 if unit == "%" else value), unit


def times(cells):
    out = []
    for cell in cells:
        found = re.fullmatch(r"([0-9]{1,4}):([0-9]{2})(?::([0-9]{2}(?:\.[0-9]+)?))?(\s?([AaPp])\.?[Mm]\.?)?", cell)
        if not found:
            return None
        hours = int(found[1]) if not found[5] else int(found[1]) % 12 + 12 * (found[5] in "Pp")
        out.append((3600.0 * hours + 60.0 * int(found[2]) + float(found[3] or 0)) / 86400.0)
    return out


def booleans(cells):
    found = [{"true": 1.0, "false": 0.0}.get(cell.lower()) for cell in cells]
    return None if None in found else found


def dates(cells):
    moments = [pd.Timestamp(cell) for cell in cells]
    moments = [m if m.tzinfo is None else m.tz_convert("UTC").tz_localize(None) for m in moments]
    return [(m.to_datetime64().astype("M8[us]").astype(np.int64)) / 86_400e6 for m in moments]


def unless_plain(read):
    """Plain numbers are what Python says; what is not plain can be read in several ways."""
    return lambda cells: None if plain(cells) is not None else read(cells)


CONVENTIONS = [convention(d, t) for d in ".," for t in ("", ",", ".", "'", " ") if d != t]
READINGS = {
    "integer": [plain],
    "number": [plain, times, *map(unless_plain, CONVENTIONS)],
    "boolean": [booleans],
    "date": [dates],
}
