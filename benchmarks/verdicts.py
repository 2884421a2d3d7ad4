"""Does OK mean OK? Runs of the default estimators on ten families of problems, and what they say of themselves.

    python benchmarks/verdicts.py [--families judging] [--only huber ...] [--estimators JointSID SID] [--quick]
        [--problems 40] [--parts verdicts target] [--draw SEED] [--keep FILE.npz]

Families are those of ``bilevax.testing.problems``: constants are chosen on ten of them and judged on the ten others.
Each has 40 random problems, each of these 8 step counts, each of these cells 12 runs in float32 through
``bx.hypergradient``, within one jit and vmap; truths are in float64. The step counts of a problem are such that the
root mean square of the relative error, over the runs of a cell, is spread log-uniformly over .01 to 1, or over what can
be reached: a pilot with other keys has looked for it. JointSID has its defaults; SID two chains of as many steps, which
for even problems fall as Grazzi, Pontil and Salzo propose, beta = gamma = 2 / (1 - q^2) (and begin below .7 of what is
stable in mean square), and for odd ones are constant, half of what is stable; a fourth as many cross batches.

The seed of a judging run is made of the commit; each such run adds a line to benchmarks/results/verdicts-judged.jsonl.
Prints markdown tables and checks, and writes benchmarks/results/verdicts.json.
"""

import argparse
import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np

RESULTS = Path(__file__).parent / "results"
LANES = 120
"""Runs of one call of the compiled program."""

FIRST, GROWTH, PILOT_RUNS = 50, 4, 4
LOW, HIGH = 0.01, 1.0
TOL, CERTAIN, VAL_BATCH = 0.1, 0.99, 16
ESTIMATORS = "JointSID", "SID"


class Setting(NamedTuple):
    """How much is run."""

    problems: int
    counts: int
    runs: int
    cap: int  # steps
    draw: int


class Group(NamedTuple):
    """The problems of a family: arrays [problems, ...] in float32 but for the truths."""

    name: str
    problem: Any
    batch: int
    sampling: str
    arrays: tuple[Any, ...]  # (w0, lam, train, val)
    truth: np.ndarray  # [problems, m]
    falling: np.ndarray  # of SID: eta_0, and the steps after which it has halved (inf: constant), [problems, 2]

    @classmethod
    def of(cls, name: str, setting: Setting) -> "Group":
        """Drawn and solved."""
        import jax

        from bilevax.testing.problems import problem

        drawn = [problem(name, (setting.draw + i) % 2**63) for i in range(setting.problems)]
        one = drawn[0]
        stacked = jax.tree.map(lambda *x: _single(np.stack(x)), *[(p.w0, p.lam, p.train, p.val) for p in drawn])
        falling = [of_sid(p, even=i % 2 == 0) for i, p in enumerate(drawn)]
        truths = np.stack([flat(p.solution().hypergradient) for p in drawn])
        return cls(name, one.unmeasured, one.batch_size, one.sampling, stacked, truths, np.array(falling))


def _single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def flat(tree: Any, axes: int = 0) -> np.ndarray:
    """Entries of a tree like lam, along the last axis, behind so many axes."""
    import jax

    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:axes], -1) for x in leaves], axis=-1)


# The steps of SID


def of_sid(p: Any, even: bool) -> tuple[float, float]:
    """(eta_0, horizon) of eta_j = eta_0 / (1 + j / horizon)."""
    systems = rows_of_system(p)
    stable, mean = largest_stable(systems, p.batch_size), systems.mean(axis=0)
    if not even:
        return 0.5 * stable, np.inf
    q = min(np.max(np.abs(np.linalg.eigvals(np.eye(len(mean)) - mean))), 1.0 - 1e-6)
    beta = 2.0 / (1.0 - q**2)
    gamma = beta / min(1.0, 0.7 * stable)
    return beta / gamma, gamma


def rows_of_system(p: Any) -> np.ndarray:
    """I - d1Phi of each row at the solution, [n, d, d], for the measured step."""
    import jax
    import jax.numpy as jnp

    points = jax.tree.map(lambda x: jnp.asarray(_single(np.asarray(x))), (p.w0, p.solution().w, p.lam))
    return np.asarray(_rows(p.unmeasured, points, p.sources(), jax.random.key(0)), np.float64)


def _rows(problem: Any, points: tuple[Any, Any, Any], sources: Any, key: Any) -> Any:
    import jax

    return jax.jit(_rows_traced)(problem, points, sources[0], key)


def _rows_traced(problem: Any, points: tuple[Any, Any, Any], train: Any, key: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    from bilevax.hypergradients.measured import measured_problem

    w0, w, lam = points
    ready = measured_problem(problem, w0, lam, train, key)
    x, tree = ravel_pytree(w)

    def system(row: Any) -> Any:
        row = jax.tree.map(lambda a: a[None], row)
        return jnp.eye(len(x)) - jax.jacfwd(lambda x: ravel_pytree(ready.inner_map(tree(x), lam, row))[0])(x)

    return jax.vmap(system)(train.full)


def largest_stable(systems: np.ndarray, b: int) -> float:
    """The largest eta with which x <- x - eta A_B x is stable in mean square, A_B the mean of b rows' systems.

    E[x x'] -> E[x x'] - eta (A E[x x'] + E[x x'] A') + eta^2 E[A_B E[x x'] A_B'] has a spectral radius below one.
    """
    d, mean, eye = systems.shape[1], systems.mean(axis=0), np.eye(systems.shape[1])
    both = np.einsum("nij,nkl->ikjl", systems, systems).reshape(d * d, d * d) / len(systems)
    square = both / b + (1.0 - 1.0 / b) * np.kron(mean, mean)
    line = np.kron(mean, eye) + np.kron(eye, mean)
    low, high = 0.0, 4.0
    for _ in range(10):
        eta = 0.5 * (low + high)
        radius = np.max(np.abs(np.linalg.eigvals(np.eye(d * d) - eta * line + eta**2 * square)))
        low, high = (eta, high) if radius < 1.0 else (low, eta)
    return max(low, 1e-3)


# The runs


def compiled() -> Any:
    """The program: LANES runs of as many steps, each with its own problem and key."""
    import jax
    import jax.numpy as jnp

    import bilevax as bx

    @partial(jax.jit, static_argnames=("name", "batch", "sampling"))
    def run(
        problem: Any, arrays: Any, falling: Any, keys: Any, steps: Any, *, name: str, batch: int, sampling: str
    ) -> Any:
        def one(arrays: Any, falling: Any, key: Any) -> Any:
            w0, lam, train, val = arrays
            if name == "JointSID":
                estimator: Any = bx.JointSID(steps)
            else:
                solver = bx.FixedPoint(steps, bx.Polynomial(falling[0], 1.0, falling[1]))
                estimator = bx.SID(solver, solver, cross_batches=jnp.maximum(steps // 4, 2))
            sources = bx.Arrays(train, batch, sampling, None), bx.Arrays(val, VAL_BATCH if name == "JointSID" else None)
            est = bx.hypergradient(problem, estimator, w0, lam, *sources, key=key, tol=TOL)
            return est.code, est.error

        return jax.vmap(one)(arrays, falling, keys)

    return run


class Said(NamedTuple):
    """What runs say of themselves, [runs] or [runs, m]."""

    code: np.ndarray
    value: np.ndarray
    half: np.ndarray  # of the interval for the truth
    confidence: np.ndarray  # of the sign
    relative: np.ndarray
    upper: np.ndarray
    degrees: np.ndarray


def said(code: Any, error: Any) -> Said:
    """From the reports of many runs; all use of the record of errors is here."""
    import jax

    upper = jax.vmap(lambda e: e.upper if hasattr(e, "upper") else e.relative)(error)
    relative = jax.vmap(lambda e: e.relative)(error)
    code, error = jax.tree.map(np.asarray, (code, error))
    value, half, confidence = flat(error.value, 1), [], []
    for i in range(len(code)):
        one = jax.tree.map(lambda x, i=i: x[i], error)
        low, high = one.interval(bias=True)
        half.append(0.5 * (flat(high) - flat(low)))
        confidence.append(flat(one.sign_confidence))
    numbers = (np.asarray(x, np.float64) for x in (relative, upper, error.degrees))
    return Said(code, value, np.stack(half), np.stack(confidence), *numbers)


class Runs:
    """Runs of one estimator on one family."""

    def __init__(self, group: Group, estimator: str) -> None:
        self.group, self.estimator, self.program = group, estimator, compiled()
        self.steps, self.seconds = 0, 0.0  # made, after the first call

    def __call__(self, numbers: np.ndarray, keys: np.ndarray, steps: int) -> Said:
        """Run at most LANES of them: of so many problems, each with a key of a seed."""
        import jax
        import jax.numpy as jnp

        g, lanes = self.group, np.resize(np.arange(len(numbers)), LANES)
        at = numbers[lanes]
        arrays, falling = jax.tree.map(lambda x: jnp.asarray(x[at]), (g.arrays, g.falling.astype(np.float32)))
        made = jax.vmap(jax.random.key)(jnp.asarray(keys[lanes], jnp.uint32))
        call = partial(self.program, name=self.estimator, batch=g.batch, sampling=g.sampling)
        clock = time.perf_counter()
        out = jax.block_until_ready(call(g.problem, arrays, falling, made, jnp.int32(steps)))
        self.seconds += time.perf_counter() - clock
        self.steps += steps
        return said(*jax.tree.map(lambda x: x[: len(numbers)], out))

    def relative(self, numbers: np.ndarray, runs: Said) -> np.ndarray:
        """True relative errors; infinite where a run has no finite value."""
        truth = self.group.truth[numbers]
        error = np.linalg.norm(runs.value - truth, axis=1) / np.linalg.norm(truth, axis=1)
        return np.where(np.isfinite(error), error, np.inf)


def piloted(runs: Runs, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """The step counts that were tried, [T], and the root mean square errors of each problem, [problems, T].

    A problem is left alone once it is at LOW; what was not run is as the last that was.
    """
    counts = [FIRST]
    while counts[-1] * GROWTH < setting.cap:
        counts.append(counts[-1] * GROWTH)
    counts.append(setting.cap)
    rms = np.full((setting.problems, len(counts)), np.nan)
    for t, steps in enumerate(counts):
        todo = np.repeat(np.flatnonzero(~(np.nanmin(rms[:, :t], axis=1, initial=np.inf) < LOW)), PILOT_RUNS)
        for part in np.array_split(todo, -(-len(todo) // LANES)) if len(todo) else ():
            keys = 10**8 + 1000 * part + np.arange(len(part))
            true = runs.relative(part, runs(part, keys, steps))
            for i in np.unique(part):
                rms[i, t] = np.sqrt(np.mean(np.minimum(true[part == i], 1e6) ** 2))
    for t in range(1, len(counts)):
        rms[:, t] = np.where(np.isnan(rms[:, t]), rms[:, t - 1], rms[:, t])
    return np.array(counts), rms


def planned(counts: np.ndarray, rms: np.ndarray, setting: Setting) -> np.ndarray:
    """Step counts whose root mean square errors are log-uniform over LOW to HIGH, where that is reached, [problems, 8].

    By interpolation of logarithms; an error that grows again with the steps is not looked for.
    """
    rng, out = np.random.default_rng(0), []
    for errors in rms:
        least = np.minimum.accumulate(errors) * (1 - 1e-6 * np.arange(len(counts)))  # strictly falling
        low, high = np.log(np.clip(least[-1], LOW, HIGH / 2)), np.log(np.clip(least[0], 2 * LOW, HIGH))
        places = (np.arange(setting.counts) + rng.uniform()) / setting.counts
        wanted = high + (min(low, high - 1e-3) - high) * places
        out.append(np.exp(np.interp(-wanted, -np.log(least), np.log(counts))))
    return np.array(out)


def measure(name: str, estimator: str, setting: Setting) -> dict[str, np.ndarray]:
    """Every run of one estimator on one family: arrays [runs] or [runs, m]."""
    clock = time.perf_counter()
    runs = Runs(Group.of(name, setting), estimator)
    counts, rms = piloted(runs, setting)
    wanted = planned(counts, rms, setting)
    cells, found = np.argsort(wanted, axis=None), []
    for part in np.array_split(cells, -(-len(cells) * setting.runs // LANES)):
        steps = round(float(np.exp(np.mean(np.log(wanted.ravel()[part])))))
        cell = np.repeat(part, setting.runs)
        problem, keys = cell // setting.counts, cell * setting.runs + np.tile(np.arange(setting.runs), len(part))
        say = runs(problem, keys, steps)
        truth, true = runs.group.truth[problem], runs.relative(problem, say)
        found.append({
            "cell": cell, "problem": problem, "steps": np.full(len(cell), steps), "true": true,
            "error": say.value - truth, "code": say.code, "half": say.half, "relative": say.relative,
            "upper": say.upper, "degrees": say.degrees, "declared": say.confidence > CERTAIN,
            "wrong": np.sign(say.value) != np.sign(truth),
        })  # fmt: skip
    out = {key: np.concatenate([f[key] for f in found]) for key in found[0]}
    out["reached"] = rms.min(axis=1)
    return out | {"made": np.array(runs.steps), "seconds": np.array([time.perf_counter() - clock, runs.seconds])}


# The figures


class Share(NamedTuple):
    """How often, among how many, and the standard error where what comes from one problem is a cluster."""

    hits: int
    number: int
    error: float

    @classmethod
    def of(cls, hits: np.ndarray, among: np.ndarray, cluster: np.ndarray) -> "Share":
        """Of flags, by cluster; flags [runs, m] belong to their run."""
        among = np.broadcast_to(among[(...,) + (None,) * (hits.ndim - among.ndim)], hits.shape)
        axes = tuple(range(1, hits.ndim))
        size = int(cluster.max()) + 1 if len(cluster) else 0
        total = np.bincount(cluster, np.sum(hits & among, axis=axes), size)
        number = np.bincount(cluster, np.sum(among, axis=axes), size)
        mean = total.sum() / max(number.sum(), 1.0)
        spread = np.sqrt(np.sum((total - mean * number) ** 2)) / max(number.sum(), 1.0)
        return cls(int(total.sum()), int(number.sum()), float(spread))

    @property
    def value(self) -> float:
        """NaN of nothing."""
        return self.hits / self.number if self.number else float("nan")

    def __str__(self) -> str:
        """In percent, with its 95 % interval; without a hit, the upper end is 3 over the number."""
        if not self.number:
            return "-"
        high = self.value + 1.96 * self.error if self.hits else 3.0 / self.number
        return f"{100 * self.value:.2f} [{100 * max(self.value - 1.96 * self.error, 0):.2f}, {100 * high:.2f}]"


def root_mean_square(runs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of the relative error and of the error of each entry, over the runs of the cell that a run belongs to."""
    _, place, number = np.unique(runs["cell"], return_inverse=True, return_counts=True)

    def rms(x: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(number), *x.shape[1:]))
        np.add.at(sums, place, np.nan_to_num(x, nan=1e30, posinf=1e30, neginf=-1e30) ** 2)
        return np.sqrt((sums.T / number).T)[place]

    return rms(runs["true"]), rms(runs["error"])


def figures(runs: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is checked."""
    ok, far, cluster = runs["code"] == 0, ~(runs["true"] <= TOL), runs["problem"]
    rms, entries = root_mean_square(runs)
    ratio = np.divide(runs["half"], 1.96 * entries, out=np.full_like(entries, np.nan), where=entries > 0)
    both = np.bincount(runs["cell"], ok & far) / np.maximum(np.bincount(runs["cell"]), 1)
    band = np.clip(np.floor(4 * np.log10(np.clip(rms, LOW, 0.999 * HIGH) / LOW)).astype(int), 0, 7)
    bands = [Share.of(ok & far, band == k, cluster) for k in range(8)]
    return {
        "runs": len(ok), "OK": int(ok.sum()),
        "codes": np.bincount(runs["code"]).tolist(),
        "wrong": Share.of(far, ok, cluster),
        "withheld": Share.of(~ok, rms < TOL / 3, cluster),
        "signs": Share.of(runs["declared"] & runs["wrong"], np.ones_like(ok), cluster),
        "covered": Share.of(np.abs(runs["error"]) <= runs["half"], ok, cluster),
        "width": float(np.nanmedian(ratio[ok])) if ok.any() else float("nan"),
        "worst cell": float(both.max()), "bands": bands,
        "worst band": max((b.value for b in bands if 20 * b.number >= len(ok)), default=float("nan")),
        "reached": np.quantile(runs["reached"], [0.0, 0.5, 1.0]).tolist(),
        "short": int(np.sum(runs["reached"] > LOW)),
        "rms": np.quantile(rms, [0.1, 0.5, 0.9]).tolist(),
        "steps": [int(runs["steps"].min()), int(runs["steps"].max())],
        "steps a second": float(runs["made"] * LANES / max(runs["seconds"][1], 1e-9)),
        "seconds": float(runs["seconds"][0]),
    }  # fmt: skip


HEAD = (
    "family", "estimator", "OK / runs", "OK and wrong", "withheld below tol / 3", "wrong signs", "covered", "width",
    "P(OK, wrong): worst cell, band", "reached", "rms 10, 50, 90 %", "steps", "codes", "seconds",
)  # fmt: skip
WITHHELD = {"JointSID": 0.2, "SID": 0.5}
ENOUGH = 300


def row(name: str, estimator: str, f: dict[str, Any]) -> str:
    low, middle, high = f["rms"]
    cells = [
        name, estimator, f"{f['OK']} / {f['runs']}", f["wrong"], f["withheld"], f["signs"], f["covered"],
        f"{f['width']:.2f}", f"{f['worst cell']:.2f}, {f['worst band']:.3f}",
        f"{f['reached'][0]:.2g} to {f['reached'][2]:.2g}, {f['short']} short", f"{low:.2g}, {middle:.2g}, {high:.2g}",
        "{} to {}".format(*f["steps"]), " ".join(map(str, f["codes"])), f"{f['seconds']:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def checks(found: dict[tuple[str, str], dict[str, Any]], enough: int) -> list[tuple[str, str, str, bool]]:
    """(What, figure, goal, met)."""
    rows = []
    for estimator in ESTIMATORS:
        of = {name: f for (name, e), f in found.items() if e == estimator}
        if not of:
            continue

        def worst(what: str, value: dict[str, float], goal: str, met: Any, estimator: str = estimator) -> None:
            bad = [name for name, x in value.items() if not met(x)]
            extreme = max(value.values()) if "at most" in goal else min(value.values())
            names = f" ({', '.join(bad)})" if bad else ""
            rows.append((f"{estimator}: {what}", f"{extreme:.4g}{names}", goal, not bad))

        worst("OK runs of a family", {n: f["OK"] for n, f in of.items()}, f"at least {enough}", lambda x: x >= enough)
        for what, key, most in (
            ("OK and wrong, %", "wrong", 3.0),
            ("OK withheld where rms < tol / 3, %", "withheld", 100 * WITHHELD[estimator]),
            ("declared signs that are wrong, % of all entries", "signs", 1.0),
        ):
            shares = {n: 100 * f[key].value for n, f in of.items() if f[key].number}
            if shares:
                worst(what, shares, f"at most {most:g}", lambda x, most=most: x <= most)
        covered = {n: 100 * f["covered"].value for n, f in of.items() if f["covered"].number}
        widths = {n: f["width"] for n, f in of.items() if np.isfinite(f["width"])}
        if covered:
            worst("coverage over OK runs, %", covered, "at least 93", lambda x: x >= 93.0)
        if widths:
            worst("median width / ideal", widths, "at most 2.5", lambda x: x <= 2.5)
    pooled = pool([f["wrong"] for f in found.values()])
    rows.append(("pooled: OK and wrong, %", str(pooled), "at most 1", not pooled.value > 0.01))
    return rows


def pool(shares: list[Share]) -> Share:
    """Of separate clusters."""
    number = sum(s.number for s in shares)
    error = np.sqrt(sum((s.error * s.number) ** 2 for s in shares)) / max(number, 1)
    return Share(sum(s.hits for s in shares), number, float(error))


# Runs with a target


def with_target(name: str, estimator: str, setting: Setting) -> dict[str, Any]:
    """Runs through the eager door that are asked for a relative error of TOL."""
    import jax
    import jax.numpy as jnp

    import bilevax as bx
    from bilevax.testing.problems import problem

    clock, codes, true = time.perf_counter(), [], []
    for i in range(min(setting.problems, 10)):
        p = problem(name, (setting.draw + i) % 2**63)
        truth = flat(p.solution().hypergradient)
        train, val = p.sources()
        w0, lam = (jax.tree.map(lambda x: jnp.asarray(_single(np.asarray(x))), tree) for tree in (p.w0, p.lam))
        if estimator == "JointSID":
            method: Any = bx.JointSID(100)
            val = bx.Arrays(val.data, VAL_BATCH)
        else:
            first, horizon = of_sid(p, even=i % 2 == 0)
            solver = bx.FixedPoint(100, bx.Polynomial(first, 1.0, horizon))
            method = bx.SID(solver, solver, cross_batches=25)
        for seed in range(4):
            key = jax.random.key(2 * 10**8 + 10 * i + seed)
            est = bx.hypergradient(p.unmeasured, method, w0, lam, train, val, key=key, target=TOL)
            codes.append(int(est.code))
            true.append(float(np.linalg.norm(flat(est.value) - truth) / np.linalg.norm(truth)))
    ok, far = np.array(codes) == 0, ~(np.array(true) <= TOL)
    share = Share.of(far, ok, np.repeat(np.arange(len(ok) // 4), 4))
    return {"runs": len(ok), "OK": int(ok.sum()), "above": share, "seconds": time.perf_counter() - clock}


# The command


def work(part: str, name: str, estimator: str, setting: Setting) -> tuple[str, str, str, dict[str, Any]]:
    """In a process of its own."""
    found = measure(name, estimator, setting) if part == "verdicts" else with_target(name, estimator, setting)
    return part, name, estimator, found


def commit() -> str:
    git = ["git", "-C", str(RESULTS.parent), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def plain(x: Any) -> Any:
    """For JSON: shares with their value."""
    if isinstance(x, Share):
        return {"share": None if not x.number else round(x.value, 6), "error": round(x.error, 6), "of": x.number}
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, list) else x


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", choices=("choosing", "judging"), default="judging")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these families")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS)
    parser.add_argument("--parts", nargs="+", choices=("verdicts", "target"), default=("verdicts", "target"))
    parser.add_argument("--quick", action="store_true", help="6 problems x 4 counts x 8 runs, and no targets")
    parser.add_argument("--problems", type=int, default=40, help="of each family")
    parser.add_argument("--cap", type=int, default=150_000, help="most steps of a run")
    parser.add_argument("--draw", type=int, help="seed; None: 0 for choosing, of the commit for judging")
    parser.add_argument("--keep", type=Path, metavar="FILE.npz", help="every run, for looking into")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    global LANES
    options = arguments()
    os.environ.update(machine.ONE_THREAD)
    from bilevax.testing.problems import families

    names = [n for n in families(options.families) if n in (options.only or families(options.families))]
    judging = options.families == "judging"
    draw = options.draw if options.draw is not None else int(commit()[:12], 16) if judging else 0
    setting = Setting(options.problems, 8, 12, options.cap, draw)
    parts, lanes = options.parts, LANES
    if options.quick:
        setting, parts, lanes = (
            setting._replace(problems=6, counts=4, runs=8, cap=min(options.cap, 30_000)),
            ["verdicts"],
            24,
        )
    jobs = [(part, name, e) for part in parts for e in options.estimators for name in names]
    found: dict[str, dict[tuple[str, str], Any]] = {"verdicts": {}, "target": {}}
    kept: dict[str, np.ndarray] = {}
    clock = time.perf_counter()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    with ProcessPoolExecutor(
        options.workers, mp_context=get_context("spawn"), initializer=begin, initargs=(lanes,)
    ) as pool:
        for done in as_completed([pool.submit(work, *job, setting) for job in jobs]):
            part, name, estimator, out = done.result()
            if part == "verdicts":
                kept |= {f"{name}/{estimator}/{key}": x for key, x in out.items()}
                out = figures(out)
                print(row(name, estimator, out), flush=True)
            else:
                print(f"| {name} | {estimator} | target: {out['OK']} / {out['runs']} OK, above {out['above']} "
                      f"| {out['seconds']:.0f} s |", flush=True)  # fmt: skip
            found[part][name, estimator] = out
    finish(options, setting, found, kept, time.perf_counter() - clock)


def begin(lanes: int) -> None:
    global LANES
    LANES = lanes


def finish(options: Any, setting: Setting, found: Any, kept: dict[str, np.ndarray], seconds: float) -> None:
    """Checks, files."""
    rows = checks(found["verdicts"], 1 if options.quick else ENOUGH) if found["verdicts"] else []
    for e in options.estimators:
        above = [f["above"] for (_, estimator), f in found["target"].items() if estimator == e]
        if above:
            share = pool(above)
            rows.append(
                (f"{e}: OK runs with a target that are above it, %", str(share), "at most 3", not share.value > 0.03)
            )
    print("\n| check | figure | goal | met |\n|---|---|---|---|")
    for what, figure, goal, met in rows:
        print(f"| {what} | {figure} | {goal} | {'yes' if met else 'NO'} |")
    verdicts = found["verdicts"].values()
    headline = {
        "OK": sum(f["OK"] for f in verdicts), "runs": sum(f["runs"] for f in verdicts),
        "OK that are wrong": pool([f["wrong"] for f in verdicts]).value if verdicts else None,
        "OK and wrong, worst cell": max((f["worst cell"] for f in verdicts), default=None),
        "OK and wrong, worst band": max((f["worst band"] for f in verdicts), default=None),
        "checks met": f"{sum(r[-1] for r in rows)} of {len(rows)}", "seconds": round(seconds),
    }  # fmt: skip
    print(f"\n{json.dumps(headline)}")
    if options.keep:
        np.savez_compressed(options.keep, **kept)
    record = {
        "setting": machine.setting(), "options": {k: str(v) for k, v in vars(options).items()} | setting._asdict(),
        "headline": headline, "checks": [list(map(str, r)) for r in rows],
        **{part: {f"{n}/{e}": plain(f) for (n, e), f in of.items()} for part, of in found.items()},
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "verdicts.json").write_text(json.dumps(record, indent=1) + "\n")
    if options.families == "judging":
        line = {"date": time.strftime("%Y-%m-%d %H:%M"), "commit": commit(), "draw": setting.draw, **headline}
        line["setting"] = [len(found["verdicts"]), setting.problems, setting.counts, setting.runs]
        with (RESULTS / "verdicts-judged.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
