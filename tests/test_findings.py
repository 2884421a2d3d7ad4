"""What is seen in a table before any fit: each kind of fault planted twice and more, beside what looks like it."""

import datetime
import json
import random
import uuid

import numpy as np
import pytest
from sklearn import datasets

from bilevax.cli import main
from bilevax.study.bundled import NAMES, bundled_target, load_bundled
from bilevax.study.findings import findings
from bilevax.study.leaks import score, target_of
from bilevax.study.levels import levels_of
from bilevax.tables.table import Column, Table, object_array

N = 1000
RNG = np.random.default_rng(7)
NOISE = RNG.normal(size=(N, 8))
YES = (RNG.random(N) < 0.4).astype(int)
AMOUNT = np.exp(RNG.normal(8, 1, N))
SHUFFLED = RNG.permutation(N)
DAYS = [datetime.date(2019, 1, 1) + datetime.timedelta(int(d)) for d in RNG.integers(0, 1500, N)]


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws does not depend on the tests before it."""
    RNG.bit_generator.state = BEGIN


def column(name, cells):
    """A column of a list or an array: texts, whole numbers or numbers; None and NaN are missing."""
    cells = list(cells)
    known = [cell for cell in cells if cell is not None]
    if known and isinstance(known[0], str):
        return Column(name, "text", object_array(cells))
    values = np.array([np.nan if cell is None else cell for cell in cells], float)
    whole = all(isinstance(cell, int | np.integer) for cell in known)
    return Column(name, "integer" if whole else "number", values)


def table(**columns):
    return Table("t.csv", tuple(column(name.replace("__", " "), cells) for name, cells in columns.items()))


def texts(found, about):
    return [note.text for note in found if note.about == about]


def flipped(y, rows):
    out = y.copy()
    out[rows] = 1 - out[rows]
    return out


def only(mask, values):
    return [value if wanted else None for wanted, value in zip(mask, values, strict=True)]


def ranked(x):
    return np.argsort(np.argsort(x))


FIVE = RNG.integers(0, 5, N)
GROUPS = np.repeat(np.arange(N // 4), 4)
OF_GROUP = RNG.integers(0, 2, N // 4)[GROUPS]

LEAKS = {
    "a copy with other names": (YES, np.where(YES, "left", "stayed"), "copy"),
    "a copy of many classes by other numbers": (FIVE, np.array([30, 10, 50, 20, 40])[FIVE], "copy"),
    "a flag that is wrong in three rows": (YES, flipped(YES, [5, 50, 500]), "99.7\u202f%"),
    "a category that is finer than the target": (YES, [f"{'ab'[y]}{i % 9}" for i, y in enumerate(YES)], "every row"),
    "a quantity that begins where the target does": (YES, np.where(YES, AMOUNT + 50, 40 * RNG.random(N)), "99."),
    "a sum paid where there was one": (YES, np.where(YES, AMOUNT, 0.0), "99.9\u202f%"),
    "a cell that is filled in afterwards": (YES, only(flipped(YES, range(12)), NOISE[:, 0]), "empty tells 'y' in 98.8"),
    "a text that is filled in afterwards": (YES, only(YES, ["12 B", "7 A"] * (N // 2)), "empty tells 'y' in every row"),
    "a number in other units": (AMOUNT, 0.3 * AMOUNT + 5, "rising or falling function of 'y'"),
    "a falling function": (AMOUNT, -np.log(AMOUNT), "rising or falling function of 'y'"),
    "a number with a little noise": (AMOUNT, AMOUNT * np.exp(0.01 * NOISE[:, 1]), "99.9"),
    "a count as text": (RNG.poisson(3, N) + 30.5, None, ""),
}
GAPS = RNG.random(N) < 0.3
LEAKS |= {
    "a copy with gaps": (YES, only(~GAPS, np.where(YES, "left", "stayed")), "copy"),
    "a flag with gaps": (YES, only(~GAPS, flipped(YES, [5, 50, 500])), "of the rows where it is known"),
    "a number with gaps": (AMOUNT, only(~GAPS, AMOUNT / 7), "rising or falling function"),
    "a number with gaps and noise": (AMOUNT, only(~GAPS, AMOUNT * np.exp(0.01 * NOISE[:, 1])), "99.9"),
}
LEAKS["a count as text"] = (LEAKS["a count as text"][0], [f"level {v}" for v in LEAKS["a count as text"][0]], "copy")
LEAKS["a cell where a number is not 0"] = (np.where(YES, AMOUNT, 0.0), only(YES, NOISE[:, 0]), "most frequent value")


@pytest.mark.parametrize("name", LEAKS)
def test_a_column_that_knows_the_target_is_a_leak(name):
    y, x, said = LEAKS[name]
    found = findings(table(a=NOISE[:, 3], known__later=x, b=NOISE[:, 4], y=y), "y")
    (text,) = texts(found, "leak")
    assert found[0].about == "leak"
    assert "column 'known later'" in text
    assert "(--drop 'known later')" in text
    assert said in text


HONEST = {
    "a flag that is right in 95 of 100 rows": (YES, flipped(YES, range(50))),
    "a quantity with an area under ROC of .98": (YES, 3 * YES + NOISE[:, 0]),
    "a category of high and low rates": (YES, [f"{'ab'[y if i % 20 else 1 - y]}{i % 3}" for i, y in enumerate(YES)]),
    "a number that explains 97 of 100 parts": (np.log(AMOUNT), np.log(AMOUNT) + 0.17 * NOISE[:, 1]),
    "a rare class, where a guess is right in 99 of 100": ((NOISE[:, 0] > 2.4).astype(int), NOISE[:, 1]),
    "a flag with gaps that is right in 95 of 100 rows": (YES, only(RNG.random(N) < 0.5, flipped(YES, range(50)))),
    "a detail of one class alone": (YES, only(YES & (RNG.random(N) < 0.8), NOISE[:, 0])),
    "a few cells that are right": (YES, only(RNG.random(N) < 0.1, YES)),
    "cells that are missing by chance": (YES, only(RNG.random(N) < 0.5, NOISE[:, 0])),
    "cells that are missing as often as not": (YES, only(flipped(YES, range(120)), NOISE[:, 0])),
    "a quantity of groups whose rows agree": (OF_GROUP, RNG.normal(size=N)[GROUPS]),
    "names of groups whose rows agree": (OF_GROUP, [f"g{g}" for g in GROUPS]),
    "a flag of five rare rows": (np.arange(N) % 200 == 7, (np.arange(N) % 200 == 7) * 2 + (NOISE[:, 0] > 0)),
    "cells that are missing in nine rare rows": (np.arange(N) % 111 == 7, only(np.arange(N) % 111 != 7, NOISE[:, 0])),
    "a count beside a number": (AMOUNT, np.floor(2 * np.log(AMOUNT)).astype(int)),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_strong_column_is_no_leak(name):
    y, x = HONEST[name]
    assert not texts(findings(table(a=NOISE[:, 3], x=x, y=y), "y"), "leak")


def by_hand(x, y, *, ordered, classes):
    """The error of each row by the rule, row by row, as a share of that of the best constant guess."""
    levels, values = sorted(set(x) - {None}), sorted(set(y))
    rank = {v: np.mean([i for i, w in enumerate(sorted(y)) if w == v]) + 1 for v in values}
    r = np.array([rank[v] for v in y])
    most = max(values, key=y.count)
    guess = np.array([v != most for v in y], float) if classes else (r - r.mean()) ** 2
    error = 0.0
    for i, level in enumerate(x):
        same = [j for j in range(len(x)) if x[j] == level]
        near = [k for k in (-1, 1) if level is not None and 0 <= levels.index(level) + k < len(levels)]
        if len(same) >= 10:
            usual = max(values, key=[y[j] for j in same].count)
            error += np.mean([y[j] != usual for j in same]) if classes else (r[i] - r[same].mean()) ** 2
        elif ordered and near:
            rows = [[j for j in range(len(x)) if x[j] == levels[levels.index(level) + k]] for k in near]
            # of the rows of a level next to it, the nearest in the order of the table
            ends = [of[-1] if k < 0 else of[0] for of, k in zip(rows, near, strict=True)]
            wrong = np.mean([y[j] != y[i] for j in ends]) if classes else (r[i] - r[ends].mean()) ** 2
            error += wrong
        else:
            error += guess[i]
    return error / guess.sum()


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_error_that_is_left_is_that_of_the_rule(classes, ordered):
    rng = np.random.default_rng(11)
    for _ in range(5):
        number = rng.choice([1, 2, 3, *range(20, 40)], 60, p=[0.3, 0.2, 0.04, *[0.023] * 20]).tolist()
        x = [
            None if hidden else (v if ordered else f"v{v}")
            for v, hidden in zip(number, rng.random(60) < 0.1, strict=True)
        ]
        y = [v // 3 % 3 for v in number] if classes else [v + rng.integers(0, 4) for v in number]
        found, of_y = levels_of(column("x", x)), levels_of(column("y", y))
        left = score(found.codes, target_of(of_y, classes=classes), ordered=ordered).left
        assert left == pytest.approx(by_hand(x, y, ordered=ordered, classes=classes), rel=1e-12)


def test_a_trend_in_time_is_no_leak():
    steps = np.cumsum(RNG.random(N))
    trend = steps + 0.01 * NOISE[:, 0]
    days = Column("sold", "date", np.arange(N) + 17_000.0)
    found = findings(Table("t", (days, column("a", NOISE[:, 1]), column("y", trend))), "y")
    assert not texts(found, "leak")
    assert "--time-column sold" in texts(found, "table")[0]
    mixed = Table("t", (days, column("a", NOISE[:, 1]), column("y", trend))).take(SHUFFLED)
    assert not texts(findings(mixed, "y"), "leak")
    assert not texts(findings(table(year=1000 + np.arange(N), a=NOISE[:, 1], y=trend), "y"), "leak")
    # ... and without a name of time, it is one
    assert texts(findings(table(level=steps, y=trend), "y"), "leak")


def test_few_rows_that_a_measurement_separates_are_no_leak():
    """Of many measurements of few rows one separates the classes, and that is what they are for."""
    y = np.repeat([0, 1], 20)
    wide = {f"g{j}": RNG.normal(size=40) + 6 * y * (j == 3) for j in range(100)}
    assert not texts(findings(table(**wide, y=y), "y"), "leak")
    iris = load_bundled("iris").take(np.arange(150) < 100)
    assert not texts(findings(iris, "species"), "leak")


@pytest.mark.parametrize("made", ["sum", "difference", "product"])
def test_a_target_that_is_made_of_columns(made):
    casual, registered = RNG.integers(1, 500, N), RNG.integers(1, 900, N)
    total = {"sum": casual + registered, "difference": casual - registered, "product": casual * registered}[made]
    nearly = np.where(NOISE[:, 1] > 3, np.nan, 7.0)
    columns = {"casual": casual, "a": NOISE[:, 0], "registered": registered, "nearly constant": nearly}
    (text,) = texts(findings(table(**columns, total=total), "total"), "leak")
    assert (
        "'casual' x 'registered' in every row" if made == "product" else "'casual' and 'registered' in every row"
    ) in text
    assert not texts(findings(table(**columns, total=total + RNG.integers(-3, 4, N)), "total"), "leak")


NIGHTS, DAYS_OFF, RATE = RNG.integers(0, 4, N), RNG.integers(0, 6, N), np.round(50 + 100 * RNG.random(N), 1)
PAY, TAX, DUES = (np.round(AMOUNT * share, 2) for share in (1.0, 0.3 + 0.1 * RNG.random(N), 0.1 * RNG.random(N)))
FORMULAS = {
    "a x b, with zeros": (RATE * NIGHTS, "'a' x 'b'", (RATE, NIGHTS, DAYS_OFF)),
    "a x (b + c)": (RATE * (NIGHTS + DAYS_OFF), "'a' x ('b' + 'c')", (RATE, NIGHTS, DAYS_OFF)),
    "a / b": (np.round(PAY / (NIGHTS + 1), 2), "'a' / 'b'", (PAY, NIGHTS + 1, NOISE[:, 0])),
    "a / b, a of both signs": (np.round(1e3 * NOISE[:, 0] / RATE, 2), "'a' / 'b'", (1e3 * NOISE[:, 0], RATE, DAYS_OFF)),
    "a / (b + c)": (np.round(PAY / (1 + NIGHTS + RATE), 2), "'a' / ('b' + 'c')", (PAY, 1 + NIGHTS, RATE)),
    "(a - b) / c": (np.round((PAY - TAX) / RATE, 2), "('a' - 'b') / 'c'", (PAY, TAX, RATE)),
    "a - b - c, rounded": (
        np.round(PAY - TAX - DUES),
        "a sum (with factors) of columns 'a', 'b' and 'c'",
        (PAY, TAX, DUES),
    ),
    "a / b^2, rounded": (
        np.round(PAY / RATE**2, 3),
        "a product (with powers) of columns 'a' and 'b'",
        (PAY, RATE, NIGHTS),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_target_that_is_a_formula_of_columns(name):
    total, formula, (a, b, c) = FORMULAS[name]
    columns = {"a": a, "b": b, "c": c, "other": NOISE[:, 3], "few": RNG.integers(0, 5, N)}
    (text,) = texts(findings(table(**columns, total=total), "total"), "leak")
    assert text.startswith(f"'total' is {formula} in every row")
    # one row in which it does not hold, of those that are looked at
    total = total.copy()
    total[7] += 5
    assert not texts(findings(table(**columns, total=total), "total"), "leak")


def test_rounded_noise_is_no_formula():
    columns = {f"x{j}": RNG.integers(0, 3 + 20 * j, N) for j in range(12)}
    y = np.round(sum(columns.values()) / 3 + 4 * NOISE[:, 0])
    assert not texts(findings(table(**columns, y=y), "y"), "leak")


@pytest.mark.parametrize("name", NAMES)
def test_bundled_tables_have_no_leak(name):
    assert not {"leak", "identifier", "date"} & {
        note.about for note in findings(load_bundled(name), bundled_target(name))
    }


def test_bundled_regressions_have_no_leak():
    for bunch in (datasets.load_diabetes(scaled=False), datasets.load_diabetes(), datasets.load_linnerud()):
        y = bunch.target.reshape(len(bunch.data), -1)[:, 0]
        found = findings(table(**{f"x{j}": x for j, x in enumerate(bunch.data.T)}, y=y), "y")
        assert not {"leak", "identifier", "date"} & {note.about for note in found}


draw = random.Random(3)
IDENTIFIERS = {
    "a running number": (range(1, N + 1), "counts the rows"),
    "running numbers out of order": (SHUFFLED + 500, "numbers the rows from 500 to 1499"),
    "numbers that were given out": (draw.sample(range(20_000, 40_000), N), "given out"),
    "long numbers": (draw.sample(range(10**9, 10**10), N), "as many digits"),
    "padded numbers": ([f"{i:06}" for i in draw.sample(range(10**6), N)], "numbers of an account"),
    "UUIDs": ([str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(N)], "UUIDs"),
    "hashes": ([f"{draw.getrandbits(160):040x}" for _ in range(N)], "hashes"),
    "e-mail addresses": ([f"user{i}@example.org" for i in range(N)], "e-mail"),
    "names": ([f"{draw.choice('ABCDEFG')}{i} Smith" for i in range(N)], "a name or an identifier"),
    "free text": ([f"the {i} cats sat on {i + 2} mats" for i in range(N)], "free text"),
}


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_what_only_tells_rows_apart_is_an_identifier(name):
    cells, said = IDENTIFIERS[name]
    (text,) = texts(findings(table(a=NOISE[:, 0], thing=cells, y=YES), "y"), "identifier")
    assert "column 'thing'" in text
    assert "(--drop thing)" in text
    assert said in text


NO_IDENTIFIERS = {
    "pay": RNG.integers(20_000, 90_000, N),
    "sparse": draw.sample(range(0, 10**6, 997), N),
    "people": np.exp(RNG.normal(13, 1.5, N)).astype(int),
    "age": RNG.integers(18, 90, N),
    "weight": NOISE[:, 2],
    "year": range(1000, 1000 + N),
    "city": [f"city {i % 300}" for i in range(N)],
}


@pytest.mark.parametrize("name", NO_IDENTIFIERS)
def test_a_quantity_is_no_identifier(name):
    assert not texts(findings(table(**{name: NO_IDENTIFIERS[name]}, y=YES), "y"), "identifier")


def test_a_cleaning_is_told_of_no_option_that_it_lacks():
    free = [f"{i} came on foot and went away by {i % 7} boats" for i in range(N)]
    for cleaning in (False, True):
        running, read = texts(findings(table(id=range(N), said=free, y=YES), "y", cleaning=cleaning), "identifier")
        assert "(--drop id)" in running
        assert "(--drop said)" in read
        assert ("--time-column id" in running, "(tune --words said)" in read) == (not cleaning, not cleaning)
    running, _ = texts(findings(table(id=range(N), said=free, day=FIVE, y=YES), "y", time="day"), "identifier")
    assert "--time-column" not in running


def test_a_name_says_that_a_sparse_number_is_an_identifier():
    numbers = draw.sample(range(0, 10**6, 997), N)
    for name in ("customer_id", "CustomerID", "patientNo", "id"):
        assert "by its name" in texts(findings(table(**{name: numbers}, y=YES), "y"), "identifier")[0]


EPOCH = [int((day - datetime.date(1970, 1, 1)).days) * 86_400 for day in DAYS]
DATES = {
    "year, month, day": [int(day.strftime("%Y%m%d")) for day in DAYS],
    "year, month": [int(day.strftime("%Y%m")) for day in DAYS],
    "day, month, year": [int(day.strftime("%d%m%Y")) for day in DAYS],
    "month, day, year": [int(day.strftime("%m%d%Y")) for day in DAYS],
    "padded": [day.strftime("%d%m%Y") for day in DAYS],
    "Unix seconds": EPOCH,
    "Unix milliseconds": [1000 * second for second in EPOCH],
    "dots": [day.strftime("%d.%m.%Y") for day in DAYS],
    "slashes": [day.strftime("%m/%d/%y") for day in DAYS],
    "words": [day.strftime("%d-%b-%Y") for day in DAYS],
    "American words": [day.strftime("%B %d, %Y") for day in DAYS],
    "with a clock": [day.strftime("%d/%m/%Y 13:05") for day in DAYS],
    "weeks": [day.strftime("%G-W%V") for day in DAYS],
    "quarters": [f"{day.year} Q{(day.month + 2) // 3}" for day in DAYS],
    "one of them wrong": ["soon", *(day.strftime("%d.%m.%Y") for day in DAYS[1:])],
}


@pytest.mark.parametrize("name", DATES)
def test_a_date_that_is_read_as_something_else(name):
    found = findings(table(a=NOISE[:, 0], thing=DATES[name], y=YES), "y")
    (text,) = texts(found, "date")
    assert "column 'thing'" in text
    assert not texts(found, "identifier")
    assert ("(but not in 'soon')" in text) == (name == "one of them wrong")


@pytest.mark.parametrize("name", DATES)
def test_where_it_is_advised_dates_are_read(run, tmp_path, name):
    lines = [f"{cell};{y}" for cell, y in zip(DATES[name], YES, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["thing;y", *lines]))
    out = " ".join(run("t.csv", "--target", "y")[1].split())
    advised = name in ("year, month, day", "dots", "with a clock")
    assert ("--types thing=date" in out) == advised
    if advised:
        assert "(1 of dates and 1 of numbers)" in run("t.csv", "--target", "y", "--types", "thing=date")[1]


def test_numbers_that_are_dates_by_name_alone():
    days = [int((day - datetime.date(1899, 12, 30)).days) for day in DAYS]
    seconds = [second + 12_345 for second in EPOCH]
    for name, cells in (("order_date", days), ("createdAt timestamp", seconds)):
        assert texts(findings(table(**{name: cells}, y=YES), "y"), "date")
        assert not texts(findings(table(thing=cells, y=YES), "y"), "date")


NO_DATES = {
    "eight digits": RNG.integers(10_000_000, 99_999_999, N),
    "prices": RNG.integers(190_000, 210_000, N),
    "telephones": draw.sample(range(2_010_000_000, 2_019_999_960, 60), N),
    "invoices": 20_190_000 + RNG.integers(0, 3000, N),
    "three codes": RNG.choice([20_190_101, 20_190_102, 20_190_103], N),
    "batches": 100 * RNG.integers(1910, 2000, N) + RNG.integers(1, 7, N),
    "PIN codes": 201_000 + 10 * RNG.integers(1, 60, N),
    "years": RNG.integers(1990, 2020, N),
    "versions": [f"1.{i % 4}.{i % 30}" for i in range(N)],
    "ranges": [f"{10 * (i % 7)}-{10 * (i % 7) + 9}" for i in range(N)],
    "months": ["may", "june", "march"] * 333 + ["may"],
    "padded": [f"{i:08}" for i in RNG.integers(0, 10**8, N)],
}


@pytest.mark.parametrize("name", NO_DATES)
def test_what_is_like_a_date(name):
    assert not texts(findings(table(thing=NO_DATES[name], y=YES), "y"), "date")


def test_columns_that_are_constant():
    few = np.zeros(N)
    few[[3, 600]] = 1, 2
    found = findings(table(one=["x"] * N, none=[None] * N, few=few, y=YES), "y")
    one, none, nearly = texts(found, "constant")
    assert "'one' has the value 'x' in every row" in one
    assert "'none' is empty in every row" in none
    assert "'few' is the same in all rows but 2" in nearly
    honest = table(flag=(NOISE[:, 0] > 2.3).astype(int), filled=only(NOISE[:, 1] > 0, [1] * N), y=YES)
    assert not texts(findings(honest, "y"), "constant")


def test_columns_that_are_the_same():
    city = [f"c{i}" for i in RNG.integers(0, 20, N)]
    code = [int(name[1:]) * 7 % 20 for name in city]
    celsius = np.round(15 + 8 * NOISE[:, 0], 1)
    columns = {"city": city, "celsius": celsius, "code": code, "fahrenheit": 32 - 1.8 * celsius, "again": city}
    found = texts(findings(table(**columns, y=YES), "y"), "duplicates")
    assert len(found) == 3
    assert "'code' has, one to one, the values of column 'city'" in found[0]
    assert "'fahrenheit' is a rising or falling function of column 'celsius'" in found[1]
    assert "'again' has the same texts as column 'city'" in found[2]
    code[0] = (code[0] + 1) % 20
    other = {"city": city, "celsius": celsius, "code": code, "near": celsius + 0.06 * NOISE[:, 1]}
    assert not texts(findings(table(**other, y=YES), "y"), "duplicates")


def test_flags_that_tell_the_levels_of_a_column():
    level = RNG.integers(1, 5, N)
    flags = {f"is{k}": (level == k).astype(int) for k in range(1, 5)}
    nearly = flipped(flags["is2"], [5])
    (text,) = texts(
        findings(table(is1=flags.pop("is1"), level=level, **flags, nearly=nearly, y=YES), "y"), "duplicates"
    )
    assert text.startswith("columns 'is1', 'is2', 'is3' and 'is4' follow from column 'level' (")
    assert text.endswith("(--drop is1 --drop is2 --drop is3 --drop is4)")
    named = [f"grade {k}" for k in level]
    (text,) = texts(findings(table(best=(level != 4).astype(int), grade=named, y=YES), "y"), "duplicates")
    assert text.startswith("column 'best' follows from column 'grade' (it tells")


def test_a_rare_count_is_no_rare_class():
    visits = np.minimum((RNG.exponential(4, 4 * N)).astype(int), 25)
    y = np.tile(visits, 5)
    y[0] = 60
    counted, x = table(x=np.arange(len(y)) % 97 / 7, y=y), "if it is a quantity, predict a count (--task count)"
    (text,) = texts(findings(counted, "y"), "labels")
    assert x in text
    assert not texts(findings(counted, "y", task="count"), "labels")
    (text,) = texts(findings(table(x=np.arange(len(y)) % 97 / 7, y=60 - y), "y"), "labels")
    assert "predict a number (--task number)" in text


def test_years_are_a_time():
    years = RNG.integers(1984, 1989, N)
    for name, told in (("year", True), ("Year", True), ("birth year", False), ("score", False)):
        notes = texts(findings(Table("t", (column(name, years), column("y", YES))), "y"), "table")
        assert any(f"--time-column {name}" in note for note in notes) == told
    assert not texts(findings(table(year=years, g=years, y=YES), "y", group="g"), "table")


def test_two_rare_flags_agree_by_chance():
    a, b = np.zeros(40, int), np.zeros(40, int)
    a[7], b[7], a[9], b[9] = 1, 1, 1, 1
    assert not texts(findings(table(a=a, b=b, c=NOISE[:40, 0], y=YES[:40]), "y"), "duplicates")


def test_rows_that_are_copies():
    rows = np.r_[np.arange(900), np.arange(100)]
    y = YES[rows]
    columns = {"a": NOISE[rows, 0], "b": [f"w{i % 7}" for i in rows]}
    assert (
        "100 of 1,000 rows are copies of an earlier one, with the same 'y'"
        in texts(findings(table(**columns, y=y), "y"), "duplicates")[0]
    )
    # a number of its own does not make a row another one
    (text,) = texts(findings(table(no=range(N), **columns, y=flipped(y, range(950, 970))), "y"), "duplicates")
    assert "100 of 1,000 rows are copies of an earlier one in every column but 'no' and 'y'" in text
    assert "20 of them have another 'y'" in text
    (text,) = texts(findings(table(**columns, y=y), None), "duplicates")
    assert "100 of 1,000 rows are copies of an earlier one in every column;" in text
    for target in ("y", None):
        (text,) = texts(findings(table(no=range(N), **columns, y=y), target), "duplicates")
        assert "100 of 1,000 rows are copies of an earlier one in every column but 'no';" in text
    # an identifier that is copied, too, is no exception
    (text,) = texts(
        findings(table(no=[f"P{9 * i:05}" for i in range(N)], **columns, y=y).take(rows), None), "duplicates"
    )
    assert "in every column;" in text


def test_rows_of_coarse_columns_agree_by_chance():
    ages = RNG.integers(18, 80, N)
    coarse = {"sex": ["m", "f"] * (N // 2), "age": ages, "old": (ages > 60).astype(int), "city": RNG.integers(0, 4, N)}
    assert not texts(findings(table(**coarse, y=YES), "y"), "duplicates")


ALIKE = {
    "case": (["Yes", "yes"], True),
    "blanks": (["New York", "New  York"], True),
    "points": (["St. Louis", "St Louis"], True),
    "hyphens": (["semi-detached", "semi detached"], True),
    "full width": (["ABC", "\uff21\uff22\uff23"], True),
    "grades": (["A+", "A-", "A"], False),
    "bounds": (["<50K", ">50K", "=50K"], False),
    "versions": (["1.5", "15"], False),
    "ranges": (["10-20", "1020"], False),
    "marks": (["?", "!", "-"], False),
    "languages": (["C", "C++", "C#"], False),
}


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("target", [False, True])
def test_labels_that_differ_by_how_they_are_written(name, target):
    levels, alike = ALIKE[name]
    cells = [[*levels, "other"][i] for i in RNG.integers(0, len(levels) + 1, N)]
    columns = {"x": NOISE[:, 0], "y": cells} if target else {"x": cells, "y": YES}
    found = [text for text in texts(findings(table(**columns), "y"), "labels") if "written" in text or "alike" in text]
    assert len(found) == alike
    if alike:
        assert found[0].startswith("classes" if target else "values")
        for level in levels:
            assert f"{level!r} ({cells.count(level):,} rows)" in found[0]


def test_a_rare_spelling_is_no_rare_class():
    cells = np.array(["Yes", "No"])[YES].astype(object)
    cells[3], cells[YES.argmax()], cells[5] = " yes ", "NO", "yes."
    first, *others = findings(table(x=NOISE[:, 0], y=cells, z=np.where(YES, 7, 8)), "y")
    assert first.about == "labels"
    assert all(part in first.text for part in ("' yes ' (1 row)", "'NO' (1 row)", "(3 rows to change)"))
    assert "set" not in first.text
    assert not [note for note in others if note.about == "labels"]
    # what is told of the words is told whole
    assert [note for note in others if "'z'" in note.text and "value for value" in note.text]


GLUCOSE = np.clip(120 + 30 * NOISE[:, 0], 44, 199).astype(int)
MARKS = {
    "-999": np.where(NOISE[:, 5] > 1, -999, GLUCOSE),
    "9999": np.where(NOISE[:, 5] > 1, 9999, GLUCOSE),
    "0": np.where(NOISE[:, 5] > 2, 0, GLUCOSE),
    "-1": np.where(NOISE[:, 5] > 0, -1, RNG.integers(0, 30, N)),
    "-9": np.where(NOISE[:, 5] > 0, -9.0, 1 + np.abs(NOISE[:, 0])),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_number_that_stands_for_what_is_not_known(mark):
    (text,) = [text for text in texts(findings(table(x=MARKS[mark], y=YES), "y"), "table") if "--missing" in text]
    assert f"has {mark} in {np.count_nonzero(MARKS[mark] == float(mark)):,} of 1,000 rows" in text
    assert f"(--missing x={mark})" in text


NO_MARKS = {
    "counts": RNG.poisson(4, N),
    "pay of some": np.where(NOISE[:, 5] > 1, 0, RNG.integers(5_000, 90_000, N)),
    "readings of some": np.where(NOISE[:, 5] > 1, 0, GLUCOSE),
    "temperatures": np.round(10 * NOISE[:, 0]),
    "differences": np.round(3 * NOISE[:, 0]).astype(int),
    "ages": RNG.integers(18, 100, N),
    "per cents": np.clip(np.round(70 + 20 * NOISE[:, 0]), 0, 100),
    "sums": np.where(NOISE[:, 5] > 0, 0.0, AMOUNT),
    "normal": NOISE[:, 0],
}


@pytest.mark.parametrize("name", NO_MARKS)
def test_a_number_that_stands_for_itself(name):
    assert not any("--missing" in note.text for note in findings(table(x=NO_MARKS[name], y=YES), "y"))


def test_the_target():
    rare = ["a"] * 995 + ["b"] * 5
    assert "class 'b' of 'y' has 5 of 1,000 rows" in texts(findings(table(a=NOISE[:, 0], y=rare), "y"), "labels")[0]
    assert "accuracy" in texts(findings(table(a=NOISE[:, 0], y=rare), "y"), "labels")[0]
    counts = np.minimum(RNG.poisson(1.4, N), 4)
    counts[:3] = 9
    for y, advised in ((counts, True), ([f"n{count}" for count in counts], False)):
        assert ("--task count" in texts(findings(table(a=NOISE[:, 0], y=y), "y"), "labels")[0]) == advised
    gaps = only(NOISE[:, 0] > -1, ["a", "b"] * 500)
    assert texts(findings(table(a=NOISE[:, 1], y=gaps), "y"), "labels") == [
        f"'y' is missing in {gaps.count(None)} of 1,000 rows: these are left out"
    ]
    few = findings(table(a=NOISE[:, 0], y=RNG.integers(1, 4, N)), "y", task="number")
    assert "'y' is predicted as a number and has 3 different values (1, 2 and 3)" in texts(few, "labels")[0]
    for y in (YES, AMOUNT, RNG.integers(0, 3, N)):
        assert not texts(findings(table(a=NOISE[:, 0], y=y), "y"), "labels")
    assert "nothing to predict" in texts(findings(table(a=NOISE[:, 0], y=["a"] * N), "y"), "labels")[0]


def test_rows_that_are_sorted_by_the_target():
    y = np.sort(FIVE)
    found = findings(table(no=range(N), a=NOISE[:, 0], y=y), "y")
    assert "sorted by 'y'" in texts(found, "table")[0]
    # the running number tells it; that the rows are sorted is what there is to say
    assert not texts(found, "leak")
    assert "counts the rows" in texts(found, "identifier")[0]
    assert not texts(findings(table(a=NOISE[:, 0], y=FIVE), "y"), "table")


def test_columns_that_say_what_belongs_together():
    found = findings(table(patient=GROUPS * 37 + 1000, a=NOISE[:, 0], y=YES), "y")
    assert "(--group" not in texts(found, "table")[0]
    assert "250 values for 1,000 rows" in texts(found, "table")[0]
    assert "--group patient" in texts(found, "table")[0]
    assert not texts(findings(table(patient=GROUPS, a=NOISE[:, 0], y=YES), "y", group="patient"), "table")
    own = table(patient=SHUFFLED, a=NOISE[:, 0], y=YES)
    assert texts(findings(own, "y"), "identifier")
    assert not findings(own, "y", group="patient")
    for name in ("patients", "floors", "order"):
        assert not texts(findings(table(**{name: GROUPS}, a=NOISE[:, 0], y=YES), "y"), "table")


def test_codes_that_are_read_as_quantities():
    zips = RNG.choice([10115, 20095, 50667, 80331, 1067], N)
    for name in ("zip", "postal_code", "storeCode"):
        assert "=text" in texts(findings(table(**{name: zips}, y=YES), "y"), "table")[0]
    for name in ("price", "zipper", "encoded"):
        assert not texts(findings(table(**{name: zips}, y=YES), "y"), "table")


WEIGHTS = RNG.integers(100, 900, N)
QUANTITIES = {
    "units": [f"{w / 10} kg" if i % 3 else f"{2.2 * w / 10:.1f} lb" for i, w in enumerate(WEIGHTS)],
    "money": [f"${w / 10:,.2f}" for w in WEIGHTS],
    "texts": [f"{w}" for w in WEIGHTS],
    "distances": [f"{i}.5km" for i in draw.sample(range(5000), N)],
}
NO_QUANTITIES = {
    "padded": [f"{w:05}" for w in WEIGHTS],
    "houses": [f"{w}{'abcdef'[w % 6]}" for w in WEIGHTS],
    "models": [f"{w} {('GT', 'SE', 'LX', 'XL', 'RS')[w % 5]}" for w in WEIGHTS],
    "ages": [f"{10 * (w % 7)}-{10 * (w % 7) + 9}" for w in WEIGHTS],
}


@pytest.mark.parametrize("name", QUANTITIES | NO_QUANTITIES)
def test_numbers_that_are_read_as_text(name):
    cells = (QUANTITIES | NO_QUANTITIES)[name]
    found = findings(table(x=cells, a=NOISE[:, 0], y=YES), "y")
    assert sum("of numbers" in note.text or "with units" in note.text for note in found) == (name in QUANTITIES)
    assert not texts(found, "identifier")


def test_many_of_a_kind_are_named_in_one_line():
    columns = {f"c{j}": ["x"] * N for j in range(20)}
    found = texts(findings(table(**columns, a=NOISE[:, 0], y=YES), "y"), "constant")
    assert len(found) == 4
    assert found[-1] == f"and 17 more columns likewise: {', '.join(repr(f'c{j}') for j in range(3, 11))}, ..."


def test_the_most_serious_comes_first():
    found = findings(table(one=["x"] * N, no=SHUFFLED, copy=YES, day=DATES["year, month, day"], y=YES), "y")
    assert [note.about for note in found] == ["leak", "identifier", "date", "constant"]


def test_few_rows_say_nothing():
    assert not findings(table(a=[1, 1, 1], y=[1, 1, 1]), "y")


CELLS = [None, 0.0, -0.0, 1.0, -999.0, 9999.0, 1e300, 5e-324, 20240101.0, 2.0**53, 2.0**60, 17_000.5, 1.7e9, 1.7e12]
WORDS = [
    None,
    "x",
    "X ",
    "01012024",
    "2024-12-31",
    "12 kg",
    "\x1b[31m",
    "a\nb",
    "'",
    '"',
    "é",
    "\u202e",
    "...",
    "9" * 400,
    " ",
]


def any_column(rng, name, n):
    kind = ("number", "integer", "boolean", "date", "text")[rng.integers(5)]
    pool = WORDS if kind == "text" else CELLS
    drawn = rng.choice(rng.permutation(len(pool))[: rng.integers(1, len(pool) + 1)], n)
    if kind == "text":
        return Column(name, kind, object_array([WORDS[k] for k in drawn]))
    values = np.array([CELLS[k] for k in drawn], float)
    values = {"boolean": np.where(np.isnan(values), np.nan, values > 0), "integer": np.rint(values)}.get(kind, values)
    return Column(name, kind, values)


def test_any_table_is_looked_through():
    rng = np.random.default_rng(5)
    for i in range(300):
        n, names = (
            int(rng.integers(10, 80)),
            rng.permutation(["date", "id", "zip code", "a", "'"])[: rng.integers(1, 6)],
        )
        columns = tuple(any_column(rng, name, n) for name in names.tolist())
        for note in findings(Table("t", columns), columns[0].name if i % 4 else None):
            assert note.text


@pytest.fixture(name="run")
def runner(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, words)])
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


def written(path, **columns):
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")


def test_the_command_ends_with_one_where_there_is_a_leak(run, tmp_path):
    written(tmp_path / "t.csv", a=np.round(NOISE[:, 0], 4), copy=YES + 3, y=np.where(YES, "yes", "no"))
    code, out, err = run("t.csv", "--target", "y")
    assert (code, err) == (1, "")
    assert out.startswith("t.csv: 1,000 rows, 3 columns (2 of numbers and 1 of text), no missing cell\ntarget 'y', 2 c")
    assert "leak" in out
    assert run("t.csv", "--target", "y", "--drop", "copy")[0] == 0
    code, out, _ = run("t.csv")
    assert code == 0
    assert "no target" in out
    code, out, err = run("t.csv", "--target", "Y")
    assert (code, out) == (4, "")
    assert "did you mean 'y'?" in err


def test_the_command_prints_json(run, tmp_path):
    written(tmp_path / "t.csv", a=np.round(NOISE[:, 0], 4), copy=YES + 3, y=np.where(YES, "yes", ""))
    code, out, _ = run("t.csv", "--target", "y", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["rows"], found["missing_cells"], found["target"]) == (1000, 1000 - YES.sum(), "y")
    assert found["columns"] == {"a": "number", "copy": "integer", "y": "text"}
    assert {"about", "text"} == set(found["findings"][0])


def test_the_options_of_tune_say_what_the_columns_are(run, tmp_path):
    day = [f"{d:%d/%m/%Y}" for d in DAYS]
    person = SHUFFLED // 4
    written(
        tmp_path / "t.csv",
        a=np.round(NOISE[:, 0], 4),
        day=day,
        person_id=person,
        y=np.minimum(RNG.exponential(2, N).astype(int), 12),
    )
    code, out, _ = run("t.csv", "--target", "y")
    # in a pipe a finding is a line; what a date is read as is told once
    assert all(line == line.rstrip() for line in out.splitlines())
    assert [line.split(":")[0] for line in out.splitlines() if "'day'" in line] == ["date"]
    assert "--group person_id" in out
    assert ("classes" in out, "--task count" in out) == (True, True)
    code, out, _ = run("t.csv", "--target", "y", "--task", "count", "--group", "person_id")
    assert code == 0
    assert "target 'y', numbers from 0 to" in out
    assert "--group" not in out
    assert "--time-column" not in run("t.csv", "--types", "day=date", "--time-column", "day")[1]
    for words, said in (
        (["--target", "y", "--group", "persn_id"], "did you mean 'person_id'?"),
        (["--target", "day", "--task", "count"], "target 'day' holds texts such as"),
        (["--task", "count"], "--task says how a target is predicted; name it"),
        (["--target", "y", "--time-column", "y"], "is the target and cannot have another part"),
    ):
        code, out, err = run("t.csv", *words)
        assert (code > 1, out) == (True, "")
        assert said in err


def test_the_argument_says_what_is_checked(run, tmp_path):
    assert run("iris")[0] == 0
    assert "there is no file 'irs.csv'" in run("irs.csv")[2]
    assert "--seed says nothing of a table" in run("iris", "--seed", "1")[2]
    assert "--json says nothing of a problem in a module" in run("mine.py:x", "--json")[2]
    (tmp_path / "iris").mkdir()
    assert "PROBLEM must be MODULE:NAME" in run("nocolon")[2]
    written(tmp_path / "a:b", a=range(20), b=range(20))
    assert run("a:b")[1].startswith("a:b: 20 rows")


def test_a_hostile_name_comes_out_clean(run, tmp_path):
    name = '"<script>alert(1)</script>\x1b[31m\x1b]0;title\x07 line\nbreak"'
    lines = [f"{name},b,y", *(f"const,{x:.4f},{y}" for x, y in zip(NOISE[:, 0], YES, strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    code, out, _ = run("t.csv", "--target", "y")
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    said = " ".join(out.split())
    assert "column '<script>alert(1)</script> line break' has the value 'const' in every row" in said


BEGIN = RNG.bit_generator.state
