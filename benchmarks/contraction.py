"""Is the map a contraction? How often a coupled pair names a noisy map that expands, and how often it is wrong.

    python benchmarks/contraction.py

The map is w <- A w + b with A = a I + (s / sqrt d) G, where a^2 + s^2 = q^2, so that E ||A u||^2 = q^2 ||u||^2; G and b
are standard normal, and a row of the data is a pair (A, b). d = 10, 2,000 rows, batch 1, 400 keys. Every q, every count
of steps and every key are one vmapped program, which takes seconds. Prints the table of docs/results.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx
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


def main() -> None:
    keys = jax.random.split(jax.random.key(1), KEYS)
    fractions = {}
    for s in NOISE:
        a = jnp.sqrt(jnp.square(jnp.asarray(FACTORS)) - s**2)
        fractions[s] = np.mean(named(rows(s), a, jnp.asarray(STEPS), keys), axis=-1)
    print("| q | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    for i, q in enumerate(FACTORS):
        cells = (", ".join(f"{fractions[s][i, j]:.3g}" for s in NOISE) for j in range(len(STEPS)))
        print(f"| {q:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
