"""Is the map a contraction? How often a coupled pair names a noisy map that expands, and how often it is wrong.

The map is w <- A w + b with A = a I + (s / sqrt d) G, where a^2 + s^2 = q^2, so that E ||A u||^2 = q^2 ||u||^2; G and b
are standard normal, and a row of the data is a pair (A, b). d = 10, 2,000 rows, batch 1, 400 keys. Every q, every count
of steps and every key are one vmapped program, which takes seconds.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx
from benchmarks import store, tables
from bilevax.solvers.stability import coupling

D, ROWS, KEYS = 10, 2000, 400
FACTORS = (0.9, 0.95, 0.99, 1.0, 1.01, 1.05, 1.1, 1.3, 2.0)
NOISE = (0.0, 0.1, 0.3)
STEPS = (20, 50, 100, 400)


def rows(s: float) -> bx.Arrays:
    """(s / sqrt d) G and b, [2000, d, d + 1]."""
    noise = np.random.default_rng(0).standard_normal((ROWS, D, D + 1), np.float32)
    noise[:, :, :-1] *= s / np.sqrt(D)
    return bx.Arrays(noise, 1)


def affine(w: Array, a: Array, batch: Array) -> Array:
    mean = jnp.mean(batch, axis=0)
    return a * w + mean[:, :-1] @ w + mean[:, -1]


@jax.jit
def named(source: bx.Arrays, a: Array, steps: Array, keys: Array) -> Array:
    """Whether the pair is said to expand, [a, steps, keys]."""

    def one(a: Array, steps: Array, key: Array) -> Array:
        points = jnp.zeros(D), jax.random.normal(jax.random.fold_in(key, np.uint32(2**32 - 1)), (D,))
        options = {"key": key, "start": 0, "steps": steps, "step_size": lambda j: jnp.ones(())}
        return coupling(affine, points, a, source, **options).expands

    over_keys = jax.vmap(one, (None, None, 0))
    return jax.vmap(jax.vmap(over_keys, (None, 0, None)), (0, None, None))(a, steps, keys)


def main(options: argparse.Namespace) -> None:
    keys, fractions = jax.random.split(jax.random.key(1), 4 if options.quick else KEYS), []
    for s in NOISE:
        a = jnp.sqrt(jnp.square(jnp.asarray(FACTORS)) - s**2)
        fractions.append(np.mean(named(rows(s), a, jnp.asarray(STEPS), keys), axis=-1))
    table = tables.Table("q", *(f"{steps} steps" for steps in STEPS))
    for q, *shares in zip(FACTORS, *fractions, strict=True):
        table(q, *(", ".join(f"{x:.3g}" for x in each) for each in zip(*shares, strict=True)))
    store.keep(options, {"q": FACTORS, "steps": STEPS, "noise": NOISE, "named": fractions})
