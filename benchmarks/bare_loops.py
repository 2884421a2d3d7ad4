"""The algorithms by hand, for their times: bare scans over minibatches that were chosen beforehand.

The same losses, steps and minibatches as the algorithms of the package, by the fewest derivatives that jax has for
them; nothing is recorded, checked or projected. The short block of ``sampling="blocks"`` is slid back to 64 rows.
Each algorithm is a function ``(oracle, state, at, rho, gamma) -> state``, where ``at`` says by stream where the step's
minibatches are; a state begins with what ``start`` gives and has lam at the place ``LAM[name]``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

BATCH = 64
INNER, LINEAR = 10, 10
WEIGHT = 0.1  # of MA-SOBA
MULTIPLIER, GROWTH = 10.0, 1 / 7  # of F2SA

Tree = Any


class Oracle:
    """Derivatives of both losses on minibatches of train and val."""

    def __init__(self, problem: Any, train: Tree, val: Tree, blocks: bool) -> None:
        self.loss, self.outer_loss = problem.inner_loss, problem.outer_loss
        self.tables, self.blocks = (train, val), blocks
        self.epochs = [-(-len(jax.tree.leaves(table)[0]) // BATCH) for table in self.tables]

    def rows(self, table: int, at: Any) -> Tree:
        """A minibatch: from a first row on, or these rows."""
        if self.blocks:
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, BATCH), self.tables[table])
        return jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), self.tables[table])

    def train(self, at: Any) -> Tree:
        """A minibatch of train."""
        return self.rows(0, at)

    def val(self, at: Any) -> Tree:
        """A minibatch of val."""
        return self.rows(1, at)

    def inner(self, w: Any, u: Any, lam: Any, batch: Tree) -> tuple[Any, Any, Any]:
        """grad_1 G, H u and d2(grad_1 G)^T u."""
        g, pullback = jax.vjp(lambda w, lam: jax.grad(self.loss)(w, lam, batch), w, lam)
        return g, *pullback(u)

    def slope(self, w: Any, lam: Any, batch: Tree) -> Any:
        """grad_1 G."""
        return jax.grad(self.loss)(w, lam, batch)

    def product(self, w: Any, u: Any, lam: Any, batch: Tree) -> Any:
        """H u."""
        return jax.vjp(lambda w: jax.grad(self.loss)(w, lam, batch), w)[1](u)[0]

    def cross(self, w: Any, u: Any, lam: Any, batch: Tree) -> Any:
        """d2(grad_1 G)^T u."""
        return jax.vjp(lambda lam: jax.grad(self.loss)(w, lam, batch), lam)[1](u)[0]

    def outer(self, w: Any, lam: Any, batch: Tree) -> tuple[Any, Any]:
        """grad_1 E and grad_2 E."""
        return jax.grad(self.outer_loss, (0, 1))(w, lam, batch)

    def directions(self, w: Any, u: Any, lam: Any, train: Tree, val: Tree) -> tuple[Any, Any, Any]:
        """grad_1 G, H u - grad_1 E and grad_2 E - d2(grad_1 G)^T u, against which w, u and lam move."""
        (g, hu, cross), (by_w, by_lam) = self.inner(w, u, lam, train), self.outer(w, lam, val)
        return g, hu - by_w, by_lam - cross


def stepped(p: tuple[Any, ...], d: tuple[Any, ...], rho: Any, gamma: Any) -> tuple[Any, ...]:
    """A move of w, u and lam against their directions."""
    return p[0] - rho * d[0], p[1] - rho * d[1], p[2] - gamma * d[2]


def soba(o: Oracle, p: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (w, u, lam)."""
    return stepped(p, o.directions(*p, o.train(at["train"]), o.val(at["val"])), rho, gamma)


def masoba(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State ((w, u, lam), a)."""
    p, average = state
    d_w, d_u, d_lam = o.directions(*p, o.train(at["train"]), o.val(at["val"]))
    average = (1 - WEIGHT) * average + WEIGHT * d_lam
    return stepped(p, (d_w, d_u, average), rho, gamma), average


def remembered(table: Any, mean: Any, new: Any, i: Any, blocks: int) -> tuple[Any, Any, Any]:
    """SAGA: new - old + mean, the table and its mean."""
    # behind a branch and written as old + change: else the whole table is copied
    old = jax.lax.cond(i >= 0, lambda: jax.tree.map(lambda a: a[i], table), lambda: jax.tree.map(jnp.zeros_like, new))
    change = jax.tree.map(jnp.subtract, new, old)
    table = jax.tree.map(lambda a, x, c: jax.lax.dynamic_update_index_in_dim(a, x + c, i, 0), table, old, change)
    out = jax.tree.map(jnp.add, change, mean)
    return out, table, jax.tree.map(lambda m, c: m + c / blocks, mean, change)


def saba(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State ((w, u, lam), table and mean of train, table and mean of val)."""
    p, of_train, of_val = state
    inner, outer = o.inner(*p, o.train(at["train"])), o.outer(p[0], p[2], o.val(at["val"]))
    (g, hu, cross), *of_train = remembered(*of_train, inner, at["train"] // BATCH, o.epochs[0])
    (by_w, by_lam), *of_val = remembered(*of_val, outer, at["val"] // BATCH, o.epochs[1])
    return stepped(p, (g, hu - by_w, by_lam - cross), rho, gamma), tuple(of_train), tuple(of_val)


def srba(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State ((w, u, lam), the same before, the directions)."""
    p, before, d = state

    def recursive() -> Any:
        batches = o.train(at["train"]), o.val(at["val"])
        now, then = o.directions(*p, *batches), o.directions(*before, *batches)
        return jax.tree.map(lambda d, now, then: d + now - then, d, now, then)

    rows = sum(len(jax.tree.leaves(table)[0]) for table in o.tables)
    d = jax.lax.cond(at["k"] % round(rows / (2 * BATCH)) == 0, lambda: o.directions(*p, *o.tables), recursive)
    return stepped(p, d, rho, gamma), p, d


def moves(o: Oracle, w: Any, lam: Any, at: Any, rho: Any) -> Any:
    """Gradient steps of w."""
    return jax.lax.scan(lambda w, at: (w - rho * o.slope(w, lam, o.train(at)), None), w, at)[0]


def amigo(o: Oracle, p: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (w, u, lam)."""
    w, u, lam = p
    w = moves(o, w, lam, at["inner"], rho)
    by_w, by_lam = o.outer(w, lam, o.val(at["val"]))
    u = jax.lax.scan(lambda u, at: (u + rho * (by_w - o.product(w, u, lam, o.train(at))), None), u, at["linear"])[0]
    return w, u, lam - gamma * (by_lam - o.cross(w, u, lam, o.train(at["train"])))


def stocbio(o: Oracle, p: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (w, lam)."""
    w, lam = p
    w = moves(o, w, lam, at["inner"], rho)
    by_w, by_lam = o.outer(w, lam, o.val(at["val"]))

    def factor(carry: Any, at: Any) -> Any:
        r, total = carry
        r = r - rho * o.product(w, r, lam, o.train(at))
        return (r, total + r), None

    u = rho * jax.lax.scan(factor, (by_w, by_w), at["linear"])[0][1]
    return w, lam - gamma * (by_lam - o.cross(w, u, lam, o.train(at["train"])))


def sustain(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State ((w, lam), the same before, the directions)."""
    p, before, d = state

    def look(w: Any, lam: Any) -> Any:
        by_w, by_lam = o.outer(w, lam, o.val(at["val"]))
        factor = lambda i, r: r - rho * o.product(w, r, lam, o.train(at["linear"][i]))  # noqa: E731
        u = LINEAR * rho * jax.lax.fori_loop(0, at["horizon"], factor, by_w)
        g, _, cross = o.inner(w, u, lam, o.train(at["train"]))
        return g, by_lam - cross

    eta = (1.0 + at["k"].astype(float)) ** (-2 / 3)
    d = jax.tree.map(lambda d, now, then: now + (1 - eta) * (d - then), d, look(*p), look(*before))
    return (p[0] - rho * d[0], p[1] - gamma * d[1]), p, d


def drawn(o: Oracle, w: Any, lam: Any, at: Any, rho: Any) -> Any:
    """grad_2 E - d2(grad_1 G)^T u with one term of the series, of as many factors as were drawn, for u."""
    by_w, by_lam = o.outer(w, lam, o.val(at["val"]))
    factor = lambda i, r: r - rho * o.product(w, r, lam, o.train(at["linear"][i]))  # noqa: E731
    u = LINEAR * rho * jax.lax.fori_loop(0, at["horizon"], factor, by_w)
    return by_lam - o.cross(w, u, lam, o.train(at["train"]))


def bsa(o: Oracle, p: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (w, lam)."""
    w, lam = moves(o, p[0], p[1], at["inner"], rho), p[1]
    return w, lam - gamma * drawn(o, w, lam, at, rho)


def ttsa(o: Oracle, p: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (w, lam); of ALSET too, whose one move of w has its place in a list of one."""
    (w, lam), place = p, at["inner"]
    place = place[0] if place.ndim == at["linear"].ndim else place
    w = w - rho * o.slope(w, lam, o.train(place))
    return w, lam - gamma * drawn(o, w, lam, at, rho)


def mstsa(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (where d was estimated, d, (w, lam))."""
    before, d, (w, lam) = state
    w = w - rho * o.slope(w, lam, o.train(at["inner"]))
    memory = jnp.where(at["k"] == 0, 0.0, 0.5)
    d = drawn(o, w, lam, at, rho) + memory * (d - drawn(o, *before, at, rho))
    return (w, lam), d, (w, lam - gamma * d)


def fsla(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (where d was estimated, d, (w, u, lam))."""
    before, d, (w, u, lam) = state
    w = w - rho * o.slope(w, lam, o.train(at["inner"]))
    u = u + rho * (o.outer(w, lam, o.val(at["outer"]))[0] - o.product(w, u, lam, o.train(at["linear"])))
    rows, held = o.train(at["train"]), o.val(at["val"])
    by_lam = lambda w, u, lam: o.outer(w, lam, held)[1] - o.cross(w, u, lam, rows)  # noqa: E731
    memory = 1.0 - (1.0 + at["k"].astype(float)) ** -0.5
    d = by_lam(w, u, lam) + memory * (d - by_lam(*before))
    return (w, u, lam), d, (w, u, lam - gamma * d)


def series_directions(o: Oracle, w: Any, lam: Any, rows: tuple[Tree, Tree], linear: Any, rho: Any) -> tuple[Any, Any]:
    """grad_1 G and grad_2 E - d2(grad_1 G)^T u, u by StocBiO's series on the minibatches at ``linear``."""
    by_w, by_lam = o.outer(w, lam, rows[1])

    def factor(carry: Any, at: Any) -> Any:
        r, total = carry
        r = r - rho * o.product(w, r, lam, o.train(at))
        return (r, total + r), None

    u = rho * jax.lax.scan(factor, (by_w, by_w), linear)[0][1]
    g, _, cross = o.inner(w, u, lam, rows[0])
    return g, by_lam - cross


def mrbo(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State ((w, lam), the same before, the directions)."""
    p, before, d = state
    rows = o.train(at["train"]), o.val(at["val"])
    now, then = (series_directions(o, *x, rows, at["linear"], rho) for x in (p, before))
    eta = (1.0 + at["k"].astype(float)) ** (-2 / 3)
    d = jax.tree.map(lambda d, now, then: now + (1 - eta) * (d - then), d, now, then)
    return (p[0] - rho * d[0], p[1] - gamma * d[1]), p, d


def vrbo(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State ((w, lam), the directions); the default period."""
    (w, lam), d = state
    looks, (n, n_val) = len(at["inner"]), (len(jax.tree.leaves(table)[0]) for table in o.tables)

    def mean() -> Any:
        by_w, by_lam = o.outer(w, lam, o.tables[1])

        def factor(_: int, carry: Any) -> Any:
            r = carry[0] - rho * o.product(w, carry[0], lam, o.tables[0])
            return r, carry[1] + r

        u = rho * jax.lax.fori_loop(0, LINEAR, factor, (by_w, by_w))[1]
        g, _, cross = o.inner(w, u, lam, o.tables[0])
        return g, by_lam - cross

    period = round(((LINEAR + 1) * n + n_val) / (looks * (LINEAR + 2) * BATCH))
    d = jax.lax.cond(at["k"] % period == 0, mean, lambda: d)

    def move(carry: Any, at: Any) -> Any:
        before, p, d = carry
        rows = o.train(at[0]), o.val(at[1])
        now, then = (series_directions(o, *x, rows, at[2], rho) for x in (p, before))
        d = jax.tree.map(lambda d, now, then: d + now - then, d, now, then)
        return (p, (p[0] - rho * d[0], p[1]), d), None

    linear = at["linear"].reshape(looks, LINEAR, *at["linear"].shape[1:])
    start = (w, lam), (w, lam - gamma * d[1]), d
    p, _, d = jax.lax.scan(move, start, (at["inner"], at["outer"], linear))[0]
    return p, d


def f2sa(o: Oracle, state: Any, at: Any, rho: Any, gamma: Any) -> Any:
    """State (w, z, lam)."""
    w, z, lam = state
    c = MULTIPLIER * (1.0 + at["k"].astype(float)) ** GROWTH
    rows, held = o.train(at["inner"]), o.val(at["outer"])
    g = o.slope(z, lam, rows) + o.outer(z, lam, held)[0] / c
    w, z = w - rho * o.slope(w, lam, rows), z - rho * g
    rows, held = o.train(at["train"]), o.val(at["val"])
    by_z, by_w = (jax.grad(o.loss, 1)(x, lam, rows) for x in (z, w))
    return w, z, lam - gamma * (o.outer(z, lam, held)[1] + c * (by_z - by_w))


def start(name: str, w: Any, lam: Any, epochs: list[int]) -> Any:
    """The state before the first step."""
    p, zero = (w, jnp.zeros_like(w), lam), jnp.zeros_like

    def memory(*like: Any, blocks: int) -> Any:
        return tuple(jnp.zeros((blocks, *x.shape), x.dtype) for x in like), tuple(map(zero, like))

    return {
        "SOBA": lambda: p,
        "MASOBA": lambda: (p, zero(lam)),
        "SABA": lambda: (p, memory(w, w, lam, blocks=epochs[0]), memory(w, lam, blocks=epochs[1])),
        "SRBA": lambda: (p, p, tuple(map(zero, p))),
        "AmIGO": lambda: p,
        "StocBiO": lambda: (w, lam),
        "FSLA": lambda: (p, zero(lam), p),
        "BSA": lambda: (w, lam),
        "ALSET": lambda: (w, lam),
        "TTSA": lambda: (w, lam),
        "MSTSA": lambda: ((w, lam), zero(lam), (w, lam)),
        "SUSTAIN": lambda: ((w, lam), (w, lam), (zero(w), zero(lam))),
        "MRBO": lambda: ((w, lam), (w, lam), (zero(w), zero(lam))),
        "VRBO": lambda: ((w, lam), (zero(w), zero(lam))),
        "F2SA": lambda: (w, w, lam),
    }[name]()


STEPS: dict[str, Callable[..., Any]] = {
    "SOBA": soba,
    "MASOBA": masoba,
    "SABA": saba,
    "SRBA": srba,
    "AmIGO": amigo,
    "StocBiO": stocbio,
    "FSLA": fsla,
    "BSA": bsa,
    "ALSET": ttsa,
    "TTSA": ttsa,
    "MSTSA": mstsa,
    "SUSTAIN": sustain,
    "MRBO": mrbo,
    "VRBO": vrbo,
    "F2SA": f2sa,
}


def lam_of(name: str, state: Any) -> Any:
    """The outer variable of a state."""
    if name in ("FSLA", "MSTSA"):
        return state[-1][-1]
    return state[0][-1] if name in ("MASOBA", "SABA", "SRBA", "SUSTAIN", "MRBO", "VRBO") else state[-1]


def bare(name: str, problem: Any, blocks: bool) -> Callable[..., Any]:
    """The scan, compiled: (start, train, val, places, (rho, gamma)) -> lam."""

    @jax.jit
    def run(start: Any, train: Tree, val: Tree, places: Any, sizes: Any) -> Any:
        oracle = Oracle(problem, train, val, blocks)
        return lam_of(name, jax.lax.scan(lambda s, at: (STEPS[name](oracle, s, at, *sizes), None), start, places)[0])

    return run
