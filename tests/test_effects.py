"""Bins of a column and what they may do: against lines, steps and curves, and the penalties' null spaces."""

import json

import numpy as np
import pytest

from bilevax.core.errors import DataError
from bilevax.tables.effects import category, date_parts, effect_from_plain, number, resolution, room


def part(effect, kind):
    return effect.basis[:, next(slice(p.start, p.stop) for p in effect.parts if p.kind == kind)]


def distance(Z, target, w):
    """Root mean square, over the rows, of what is left of a target by bins."""
    b = np.linalg.lstsq(np.sqrt(w)[:, None] * Z, np.sqrt(w) * target)[0]
    return np.sqrt(np.average((Z @ b - target) ** 2, weights=w))


def even(n=400):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(40.0), n // 40))


COLUMNS = {
    "even": even(),
    "normal": np.random.default_rng(1).normal(size=1000),
    "heavy-tailed": np.random.default_rng(2).standard_cauchy(1000) ** 3,
    "mostly-0": np.where(np.random.default_rng(3).random(900) < 0.8, 0.0, np.random.default_rng(4).lognormal(size=900)),
    "two-valued": np.repeat([-1.0, 5.0], [30, 3]),
    "three-valued": np.repeat([0.0, 1.0, 10.0], [30, 3, 8]),
    "large": np.random.default_rng(5).normal(size=300) * 1e300,
    "far-away": 1e9 + np.random.default_rng(6).normal(size=300),
    "missing": np.where(np.random.default_rng(7).random(500) < 0.3, np.nan, np.random.default_rng(8).normal(size=500)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_parts_are_centred_and_of_mean_square_one(name):
    x = COLUMNS[name]
    weight = np.random.default_rng(9).integers(0, 3, len(x)).astype(float)
    effect = number(name, x, weight)
    X = effect.basis[effect.codes(x)]
    assert np.all(np.isfinite(X))
    assert effect.codes(x).dtype == np.uint8
    np.testing.assert_allclose(weight @ X, 0.0, atol=1e-8)
    np.testing.assert_allclose(effect.weight, np.bincount(effect.codes(x), weight, len(effect.basis)))
    there = ~np.isnan(x)
    for p in effect.parts:
        square = weight[there] @ np.sum(X[there, p.start : p.stop] ** 2, axis=1) / weight[there].sum()
        if p.kind != "missing":
            assert square == pytest.approx(1.0, abs=3e-4 if p.kind == "smooth" else 1e-9)
            np.testing.assert_allclose(effect.basis[-1, p.start : p.stop], 0.0)
    if name == "missing":
        share = weight[~there].sum() / weight.sum()
        at_last = np.arange(len(effect.basis)) == len(effect.basis) - 1
        np.testing.assert_allclose(part(effect, "missing")[:, 0], at_last - share)
    repeated = number(name, np.repeat(x, weight.astype(int)))
    np.testing.assert_array_equal(repeated.edges, effect.edges)
    np.testing.assert_allclose(repeated.basis @ repeated.basis.T, effect.basis @ effect.basis.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", COLUMNS)
def test_bins_keep_order_and_ends(name):
    x = COLUMNS[name]
    x = x[~np.isnan(x)]
    effect = number(name, x)
    codes = effect.codes(np.sort(x)).astype(int)
    assert np.all(np.diff(codes) >= 0)
    assert codes[0] == 0
    assert codes[-1] == len(effect.edges) == len(effect.basis) - 2
    assert np.all(np.bincount(codes) > 0)
    assert len(np.unique(codes)) == len(np.unique(x)) or len(np.unique(codes)) > 90
    outside = effect.codes(np.array([-np.inf, np.min(x) - 1.0, np.max(x) + 1.0, np.inf, np.nan]))
    np.testing.assert_array_equal(outside, [0, 0, codes[-1], codes[-1], codes[-1] + 1])
    for c, centre in enumerate(effect.centre):
        inside = np.sort(x)[codes == c]
        assert centre == pytest.approx(np.mean(inside / 4.0) * 4.0, rel=1e-9)


def test_a_value_of_most_rows_takes_one_bin():
    effect = number("mostly-0", COLUMNS["mostly-0"])
    at_0 = effect.codes(np.zeros(1))[0]
    assert effect.weight[at_0] == np.sum(COLUMNS["mostly-0"] == 0.0)
    others = np.delete(effect.weight[:-1], at_0)
    assert np.max(others) <= 4.0


def test_bins_are_between_equal_rows_and_equal_values():
    """Half of the rows have 100 of 2,000 values: their bins are narrow, but most bins are others'."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 100, 2000) / 100.0, np.arange(1.0, 1901.0)])
    edges = number("x", x).edges
    # half of what equal rows give and half of what equal values do: (66 + 6) / 2
    assert 32 < np.sum(edges < 1.0) < 40
    assert len(edges) > 120


def test_adjacent_floats_are_two_values():
    x = np.array([1.0, np.nextafter(1.0, 2.0), 2.0])
    np.testing.assert_array_equal(number("x", x).codes(x), [0, 1, 2])
    np.testing.assert_array_equal(number("x", -x).codes(-x), [2, 1, 0])


def test_a_constant_column_has_no_effect():
    for x in (np.full(9, 3.7), np.full(9, np.nan), np.array([1.0, np.nan, 1.0])):
        effect = number("x", x)
        assert [p.kind for p in effect.parts] == (["missing"] if 0 < np.isnan(x).sum() < len(x) else [])
        assert effect.codes(np.array([0.0, 9.0, np.nan])).tolist() == [0, 0, 1]


def test_lines_steps_and_curves_are_reproduced():
    effect = number("x", COLUMNS["normal"])
    t, w = effect.centre, effect.weight[:-1]
    line, curve, step = (f - np.average(f, weights=w) for f in (2.0 * t, np.sin(2.0 * t), (t > 0.3) * 1.0))
    line_and_smooth = effect.basis[:-1, : effect.parts[1].stop]
    rough = part(effect, "rough")[:-1]
    cases = [
        (line_and_smooth[:, :1], line, 1e-8),
        (line_and_smooth, curve, 0.04),
        (rough, step, 1e-6),
        (rough, line, 1e-6),
    ]
    for Z, target, close in cases:
        assert distance(Z, target, w) < close
    few = number("x", COLUMNS["normal"], smooth=3)
    assert part(few, "smooth").shape[1] == 3
    assert distance(few.basis[:-1, :4], curve, w) > 0.1
    assert distance(line_and_smooth, step, w) > 0.05


def test_the_rough_penalty_is_that_of_first_differences():
    """|b|^2 = scale sum of squared first differences, of any function that the part can make."""
    effect = number("x", COLUMNS["even"])
    Z = part(effect, "rough")[:-1]
    assert Z.shape == (40, 39)
    b = np.random.default_rng(0).normal(size=(39, 5))
    ratio = np.sum(b**2, axis=0) / np.sum(np.diff(Z @ b, axis=0) ** 2, axis=0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-8)


def test_the_smooth_penalty_is_that_of_second_differences():
    """On even values: sum of squared second differences, whose null space, the lines, is the linear part's."""
    effect = number("x", COLUMNS["even"], smooth=99)
    Z, w = part(effect, "smooth")[:-1], effect.weight[:-1]
    b = np.random.default_rng(0).normal(size=(Z.shape[1], 5))
    leading = b * (np.arange(len(b)) < 8)[:, None]
    ratio = np.sum(leading**2, axis=0) / np.sum(np.diff(Z @ leading, n=2, axis=0) ** 2, axis=0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_allclose(w @ (effect.centre[:, None] * Z), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.diff(part(effect, "linear")[:-1, 0], n=2), 0.0, atol=1e-12)


def test_a_smooth_part_is_the_same_from_either_end():
    x = np.repeat(np.exp(np.linspace(0.0, 5.0, 60)), np.random.default_rng(0).integers(1, 6, 60))
    Z, mirrored = (part(number("x", sign * x), "smooth")[:-1] for sign in (1.0, -1.0))
    np.testing.assert_allclose(Z @ Z.T, (mirrored @ mirrored.T)[::-1, ::-1], atol=1e-8)


def text(cells):
    out = np.empty(len(cells), object)
    out[:] = cells
    return out


def test_levels_are_shrunken_alike_and_centred():
    """Effects of levels are independent and of one variance, less their mean over the rows; an unseen one's is 0."""
    cells = text(["a"] * 50 + ["b"] * 5 + ["c"] * 20 + [None] * 10)
    effect = category("x", cells)
    assert effect.levels == ("a", "c", "b")
    assert [p.kind for p in effect.parts] == ["levels", "missing"]
    codes = effect.codes(text(["b", "new", None, "a"]))
    assert codes.tolist() == [2, 3, 4, 0]
    np.testing.assert_allclose(effect.weight @ effect.basis, 0.0, atol=1e-12)
    Z = part(effect, "levels")
    # f = (1 - 1 p') u with u ~ N(0, 1)
    # of which no row sees the mean of u
    E = (np.eye(4, 3) - np.outer(np.ones(4), [50 / 75, 20 / 75, 5 / 75])) @ (np.eye(3) - 1.0 / 3.0)
    np.testing.assert_allclose(Z[:4] @ Z[:4].T, E @ E.T, atol=1e-12)
    np.testing.assert_allclose(Z[4], 0.0)


def test_the_rarest_levels_share_an_effect_with_unseen_ones():
    cells = text([f"v{i}" for i in range(6) for _ in range(i + 1)])
    effect = category("x", cells, most=3)
    assert effect.levels == ("v5", "v4", "v3")
    assert effect.codes(text(["v0", "v2", "new"])).tolist() == [3, 3, 3]
    assert part(effect, "levels").shape == (5, 3)
    assert np.linalg.norm(effect.basis[3]) > 0.5
    many = category("x", text([f"v{i}" for i in range(400)]), most=300)
    assert many.codes(text(["new"])).dtype == np.uint16


def test_ordered_levels_have_steps():
    cells = text(["low"] * 10 + ["high"] * 3 + ["mid"] * 7 + ["odd"])
    effect = category("x", cells, ordered=("low", "mid", "absent", "high"))
    Z = part(effect, "steps")
    b = np.random.default_rng(0).normal(size=(Z.shape[1], 4))
    assert [p.kind for p in effect.parts] == ["steps"]
    np.testing.assert_allclose(effect.weight @ Z, 0.0, atol=1e-12)
    np.testing.assert_allclose(Z[4:], 0.0)
    # Between "mid" and "high" no row says where the step is: half of it on each side of "absent".
    np.testing.assert_allclose(Z[2], (Z[1] + Z[3]) / 2.0, atol=1e-9)
    assert len(b) == 2


def test_parts_of_dates():
    days = np.array([np.datetime64("2024-02-29T18:30", "m"), np.datetime64("1969-12-31T06:00", "m")])
    parts = date_parts(np.append(days.astype(float) / 1440.0, np.nan))
    expected = {"year": [2024, 1969], "month": [2, 12], "day": [29, 31], "weekday": [3, 2], "hour": [18.5, 6.0]}
    assert list(parts) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(parts[name], [*values, np.nan])
    assert list(date_parts(np.array([19782.0, 19784.0]))) == ["year", "month", "day", "weekday"]


@pytest.mark.parametrize(
    "effect",
    [
        number("x", COLUMNS["missing"]),
        category("y", text(["a", None, "b"])),
        category("z", text(["b", "a"]), ordered="ab"),
    ],
)
def test_json_and_back(effect):
    plain = json.loads(json.dumps(effect.to_plain()))
    back = effect_from_plain(plain)
    assert (back.name, back.levels, back.parts) == (effect.name, effect.levels, effect.parts)
    np.testing.assert_array_equal(back.weight, effect.weight)
    cells = np.array([-9.0, 0.1, np.nan, 9.0]) if effect.edges is not None else text(["a", "b", "c", None])
    np.testing.assert_array_equal(back.codes(cells), effect.codes(cells))
    for wrong in (
        {},
        plain | {"weight": [1.0]},
        plain | {"levels": [1]},
        plain | {"parts": [{}]},
        [],
        plain | {"edges": [2.0, 1.0]},
    ):
        with pytest.raises(DataError, match="not the effect of a column"):
            effect_from_plain(wrong)


def test_resolution_keeps_to_the_budget():
    assert resolution(5, 100) == (24, 128)
    for numbers in (20, 57, 90):
        smooth, coarse = resolution(numbers, 50)
        assert 1350 < 50 + numbers * (smooth + coarse) <= 1500
    assert resolution(0, 10) == (24, 128)
    # 6 smooth functions and the rest; those alone; less; penalties are shared
    assert resolution(100, 10) == (6, 7)
    assert resolution(100, 0, 800) == (6, 1)
    assert resolution(100, 0, 500) == (4, 1)
    assert resolution(1000, 10) == (6, 1)
    for numbers in range(1, 300):
        smooth, coarse = resolution(numbers, 10, 1000)
        assert 10 + numbers * (smooth + coarse) <= 1000 or numbers > 990 // 4
    kinds = [part.kind for part in number("x", np.arange(100.0), coarse=1).parts]
    assert kinds == ["linear", "smooth"]


def test_room_for_classes():
    assert [room(classes) for classes in (1, 4, 9, 26)] == [1500, 750, 500, 294]
