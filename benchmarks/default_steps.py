"""How far are the default steps from the best of 24 that are chosen by hand? At most 3 times its samples is the goal.

A cell is an algorithm on a problem that had no part in choosing the constants of the default steps. Counted are the
samples until the norm of the exact hypergradient is a tenth of that at the start, or 1.5 times what the algorithm's own
truncation or penalty leaves, where that is more: median over keys, looked at 36 times, at 2,000 samples first and at
1,000,000 last. By hand: constant steps, rho = 1, 1/2, 1/4, 1/8 of 1 / L and gamma = .3 to .005 of 1 / K (ten times that
in the double loops), L the largest curvature of a minibatch at the solution and K that of f at the start, both exact.
By default: ``bx.minimize`` for a run of thrice the best, measuring and whatever it tries again included. A cell counts
where the best takes 20,000 samples at least. Minibatches are blocks of 32 rows of train and of val. Penalties exp(lam)
are told, as docs/algorithms.md says. The settings by hand are kept, and not asked again; nor are the default runs, but
with --again.
"""

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx
from benchmarks import store, tables
from benchmarks.exact import Asked, asked, hypergradients
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.testing.entrants import Steps

RHO, GAMMA = (1.0, 0.5, 0.25, 0.125), (0.3, 0.1, 0.05, 0.02, 0.01, 0.005)
MARKS = np.geomspace(2_000, 1_000_000, 36)
TENTH, FLOORS, COUNTS, GOAL, LEAST, FULL_STEPS = 0.1, 1.5, 20_000, 3.0, 60_000, 8_000
LOOKS = 64
"""Most points at which a default run is looked at."""

ALGORITHMS: dict[str, Any] = {a.__name__: a for a in (bx.SOBA, bx.MASOBA, bx.SABA, bx.SRBA, bx.AmIGO, bx.StocBiO)}
ALGORITHMS |= {a.__name__: a for a in (bx.SUSTAIN, bx.F2SA, bx.FSLA, bx.BSA, bx.ALSET, bx.TTSA, bx.MSTSA)}
ALGORITHMS |= {a.__name__: a for a in (bx.MRBO, bx.VRBO)}
DOUBLE_LOOPS = "AmIGO", "StocBiO", "BSA"
DRAWN = "SUSTAIN", "BSA", "ALSET", "TTSA", "MSTSA"  # whose multiplier is a drawn term of a series
SERIES = "StocBiO", "MRBO", "VRBO"  # the whole of it

PROBLEMS = tuple(
    f"{name} {draw}"
    for draw in (1, 2, 3)
    for name in (
        "one-row", "correlated", "row-shares", "gamma", "squared-hinge", "nearly-separable", "same-rows", "quantile",
        "mean-field", "quadratic-10-b1", "quadratic-1000-b32", "logistic-500x20-0.001", "cleaning",
    )
)  # fmt: skip
"""Name and draw. Not asked: pairs, whose entries of lam are in units from 1e-6 to 1e6, so that no gamma serves all."""


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@jax.jit
def _advance(
    made: bx.Problem, algorithm: Any, settings: Any, states: Any, sources: Any, key: Array, start: Array, stop: Array
) -> Any:
    def lane(settings: dict[str, Any], state: Any) -> Any:
        chosen = replace_unchecked(algorithm, **settings)

        def step(state: Any, _: Any, k: Array, looks: Any) -> Any:
            return chosen.step(made, state, looks, k)[0]

        return bx.fold_looks(chosen.streams(sources), step, state, (), key=key, start=start, stop=stop)

    states = jax.vmap(lane)(settings, states)
    return states, jax.vmap(algorithm.solution)(states)[1]


class Lanes:
    """Runs of one algorithm with several settings on one key, led on from mark to mark."""

    def __init__(self, a: Asked, chosen: list[Any], key: int, *, sources: Any = None):
        self.asked, self.sources, self.key = a, sources or a.sources, jax.random.key(key)
        self.made, self.done = canonicalize(a.p.problem), 0
        chosen = [canonicalize(each) for each in chosen]
        names = [name for name in ("step_size", "ratio", "unit") if hasattr(chosen[0], name)]
        self.algorithm, self.settings = chosen[0], stack([{n: getattr(each, n) for n in names} for each in chosen])
        self.states = stack([each.init(self.made, *a.begin, self.sources) for each in chosen])

    def at(self, samples: float) -> np.ndarray:
        """Norms of the exact hypergradient after so many samples in all, [lanes]."""
        stop = max(int(samples / samples_of_step(self.algorithm, self.made, self.sources)), self.done)
        ends = jnp.int32(self.done), jnp.int32(stop)
        args = self.made, self.algorithm, self.settings, self.states, self.sources, self.key
        (self.states, lams), self.done = _advance(*args, *ends), stop
        return np.linalg.norm(hypergradients(self.asked.p, lams), axis=1)


def samples_of_step(algorithm: Any, made: bx.Problem, sources: Any) -> float:
    """In the mean, where they vary."""
    b, b_val = (source.rows_per_batch for source in sources)
    if type(algorithm) is bx.SRBA:
        return 2 * (b + b_val)  # a pass as soon as minibatches have read as many rows
    if type(algorithm) is bx.VRBO:  # likewise, in whole steps
        uses, looks = algorithm.linear_steps + 1, algorithm.inner_steps + 1
        whole = uses * -(-sources[0].rows // b) * b + -(-sources[1].rows // b_val) * b_val
        step = looks * (uses * b + b_val)
        return step + whole / max(round((uses * sources[0].rows + sources[1].rows) / step), 1)
    if type(algorithm).__name__ in DRAWN:  # p factors, uniform on 0, ..., K - 1
        moves = 0 if type(algorithm) is bx.SUSTAIN else getattr(algorithm, "inner_steps", 1)
        return b + b_val + (moves + (algorithm.linear_steps - 1) / 2) * b
    return float(algorithm.step_cost(made, sources).samples)


def by_hand(a: Asked, name: str) -> list[Any]:
    times, unit = 10 if name in DOUBLE_LOOPS else 1, {}
    if name == "F2SA":
        found = bx.measure_steps(a.p.problem, bx.F2SA(1.0, 1.0), *a.begin, *a.sources, key=jax.random.key(0))
        unit = {"unit": found.algorithm.unit}
    settings = [Steps(r, times * g, a.L, a.K) for r in RHO for g in GAMMA]
    return [ALGORITHMS[name](each.rho, each.ratio, **unit) for each in settings]


def floor(a: Asked, name: str) -> float:
    """What truncation (rho = 1 / L) or penalty leaves: least norm on full batches, 0 where it is not settled."""
    if name not in ("F2SA", *SERIES, *DRAWN):
        return 0.0
    chosen = by_hand(a, "F2SA" if name == "F2SA" else "StocBiO")[:3]
    if name in DRAWN:  # the mean direction is StocBiO's with a factor less
        chosen = [replace_unchecked(each, linear_steps=ALGORITHMS[name]().linear_steps - 1) for each in chosen]
    full = tuple(replace_unchecked(source, batch_size=None) for source in a.sources)
    lanes, seen = Lanes(a, chosen, 0, sources=full), [a.start]
    step = samples_of_step(lanes.algorithm, lanes.made, full)
    for steps in np.geomspace(100, FULL_STEPS, 12):
        seen.append(lanes.at(steps * step).min())
        if min(seen) * FLOORS <= TENTH * a.start:
            return 0.0
    return float(min(seen)) if seen[-1] > 0.97 * seen[-2] else 0.0


def hand(a: Asked, name: str, seeds: range) -> dict[str, Any]:
    """What an algorithm needs on a problem with the best of 24 settings, and where it ends with that one."""
    goal = max(TENTH * a.start, FLOORS * (left := floor(a, name)))
    by_seed = [Lanes(a, by_hand(a, name), seed) for seed in seeds]
    hits = np.full((len(by_seed), len(RHO) * len(GAMMA)), np.inf)
    for mark in MARKS:
        norms = np.array([lanes.at(mark) for lanes in by_seed])
        hits = np.minimum(hits, np.where(norms <= goal, mark, np.inf))
        if np.isfinite(best := float(np.median(hits, axis=0).min())):
            break
    won = np.argmin(np.median(hits, axis=0))
    return {
        "goal": goal / a.start, "floor": left / a.start, "best": best, "counts": bool(COUNTS <= best < np.inf),
        "rho": RHO[won // len(GAMMA)], "gamma": GAMMA[won % len(GAMMA)], "end": norms[:, won] / a.start,
    }  # fmt: skip


def default(a: Asked, name: str, seeds: range, asked_for: dict[str, Any]) -> dict[str, Any]:
    """What the same takes without steps, in runs of thrice the best."""
    best = asked_for["best"]
    length = max(GOAL * best, LEAST) if np.isfinite(best) else LEAST
    runs = [_run(a, name, seed, length) for seed in seeds]
    hits = [float(np.min(samples[norms <= asked_for["goal"]], initial=np.inf)) for samples, norms, _ in runs]
    return {
        "hits": hits, "ratio": float(np.median(hits)) / best if np.isfinite(best) else None,
        "end": [norms[-1] for _, norms, _ in runs], "worst": [norms.max() for _, norms, _ in runs],
        "code": [bx.Code(int(result.code)).name for _, _, result in runs],
        "slower_from": [result.config.get("slower_from", []) for _, _, result in runs],
        "steeper_from": [result.config.get("steeper_from", []) for _, _, result in runs],
    }  # fmt: skip


def _run(a: Asked, name: str, seed: int, length: float) -> tuple[np.ndarray, np.ndarray, bx.Result]:
    """Samples and norms, relative to the start, along one run; and the run."""
    of_step, seen = samples_of_step(ALGORITHMS[name](), a.p.problem, a.sources), []

    def look(progress: Any) -> None:
        seen.append((progress.history.samples[-1], progress.lam))

    steps = math.ceil(length / of_step)
    every = math.ceil(max(length / LOOKS, 2 * MARKS[0]) / of_step)
    key = jax.random.key(seed)
    result = bx.minimize(
        a.p.problem, ALGORITHMS[name](), *a.begin, *a.sources, steps=steps, key=key, callback=look, every=every
    )
    # as many as ever, so that the program of the exact ones is compiled once
    samples, lams = zip(*(seen + seen[-1:] * (LOOKS + 2))[: LOOKS + 2], strict=True)
    return np.array(samples, float), np.linalg.norm(hypergradients(a.p, stack(list(lams))), axis=1) / a.start, result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", nargs="+", metavar="'NAME DRAW'", default=PROBLEMS)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=tuple(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=3, help="an odd number")
    parser.add_argument("--by-hand", action="store_true", help="nothing but what is asked of settings by hand")
    parser.add_argument("--again", action="store_true", help="make the default runs asked for again")


def summary(hands: dict[str, Any], defaults: dict[str, Any]) -> list[tables.Check]:
    """Of each algorithm: cells that count and the worst of them; and whether a default run ended above its start."""
    found = []
    for name in ALGORITHMS:
        own = {key: each for key, each in defaults.items() if key.endswith(f" {name}")}
        ratios = {key: each["ratio"] for key, each in own.items() if hands[key]["counts"]}
        if not ratios:
            continue
        within, worst = sum(ratio <= GOAL for ratio in ratios.values()), max(ratios, key=lambda key: ratios[key])
        figure = f"{within} of {len(ratios)}, at worst {ratios[worst]:.3g} ({worst})"
        found.append((f"{name}: samples / best", figure, f"<= {GOAL}, 8 problems", within == len(ratios) >= 8))
        up = [key for key, each in own.items() if not np.all(np.asarray(each["end"], float) <= 1.0)]
        found.append((f"{name}: ends above its start", ", ".join(up) or "never", f"of {len(own)} never", not up))
    return found


def main(options: argparse.Namespace) -> None:
    kept = {} if options.quick else store.kept(options)
    hands, defaults = kept.get("hands", {}), kept.get("defaults", {})
    names, chosen, seeds = options.problems, options.algorithms, range(options.seeds)
    if options.again:
        asked_for = {f"{name} {each}" for name in names for each in chosen}
        defaults = {key: each for key, each in defaults.items() if key not in asked_for}
    if options.quick:
        names, chosen, seeds = names[:1], ("SOBA", "StocBiO"), range(1)
    table = tables.Table("problem", "algorithm", "best", "rho L", "gamma K", "ratio", "end", "worst", "slower from")
    for name in names:
        # F2SA is of a loss alone
        cells = {each: f"{name} {each}" for each in chosen if f"{name[:10]} {each}" != "mean-field F2SA"}
        wanted = hands if options.by_hand else defaults
        a = asked(name) if any(key not in wanted for key in cells.values()) else None
        for each, key in cells.items():
            if a and key not in hands:
                hands[key] = store.plain(hand(a, each, seeds))
            if a and key not in defaults and not options.by_hand:
                defaults[key] = store.plain(default(a, each, seeds, hands[key]))
            last = defaults.get(key, {})
            shown = (hands[key][x] for x in ("best", "rho", "gamma"))
            table(name, each, *shown, *(last.get(x) for x in ("ratio", "end", "worst", "slower_from")))
            store.keep(options, {"hands": hands, "defaults": defaults})
    if not options.quick and not options.by_hand:
        tables.checks(checks := summary(hands, defaults))
        store.keep(options, {"checks": checks, "hands": hands, "defaults": defaults})
