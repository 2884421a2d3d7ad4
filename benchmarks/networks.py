"""Small networks, a weight for every row, every default: does the test accuracy rise above that of equal weights?

400 rows in six dimensions of which 30 % have a flipped label, 200 clean rows in val, 2000 in test; MLPs of equinox with
one or two hidden layers of 32. The weights are sigmoid(lam), from lam = 0; no step is given. "Equal" is the network of
the first outer step: equal weights, the same inner solver, as many steps.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks import store, tables

TRAIN, VAL, TEST, FEATURES, FLIPPED = 400, 200, 2000, 6, 0.3
STEPS, OUTER_STEPS, RATE, BATCH, DECAY = 1000, 20, 0.3, 32, 5e-4


def draw(seed):
    """(x, y, row) of train with flipped labels, (x, y) of val and of test; labels of a random tanh network."""
    rng = np.random.default_rng([17, seed])
    x = rng.standard_normal((TRAIN + VAL + TEST, FEATURES)).astype(np.float32)
    score = np.tanh(x @ rng.standard_normal((FEATURES, 8))) @ rng.standard_normal(8)
    y = (score > np.median(score)).astype(np.int32)
    noisy = np.where(rng.random(TRAIN) < FLIPPED, 1 - y[:TRAIN], y[:TRAIN]).astype(np.int32)
    train, val, test = np.split(np.arange(len(y)), [TRAIN, TRAIN + VAL])
    return (x[train], noisy, train.astype(np.int32)), (x[val], y[val]), (x[test], y[test])


def network(activation, depth, seed):
    """(arrays, the rest) of an MLP."""
    net = eqx.nn.MLP(FEATURES, 2, 32, depth, activation=activation, key=jax.random.key(seed))
    return eqx.partition(net, eqx.is_inexact_array)


def functions(rest):
    """The inner and the outer loss, and the accuracy."""

    def logits(w, x):
        return jax.vmap(eqx.combine(w, rest))(x)

    def losses(w, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(w, x)), y[:, None], 1)[:, 0]

    def inner(w, lam, batch):
        x, y, row = batch
        decay = sum(jnp.sum(p**2) for p in jax.tree.leaves(w))
        return jnp.mean(jax.nn.sigmoid(lam[row]) * losses(w, x, y)) + DECAY * decay

    def outer(w, lam, batch):
        return jnp.mean(losses(w, *batch))

    def accuracy(w, x, y):
        return jnp.mean(jnp.argmax(logits(w, x), 1) == y)

    return inner, outer, jax.jit(accuracy)


def arguments(parser):
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--seeds", type=int, default=3)


def main(options):
    seeds, most = ((0,), 2) if options.quick else (range(options.first, options.first + options.seeds), OUTER_STEPS)
    table = tables.Table(
        "units", "hidden", "seed", "equal", "weights", "gain", "code", "steps", "damping", "s", "CPU s"
    )
    rows = []
    for activation in (jnp.tanh,) if options.quick else (jax.nn.relu, jnp.tanh):
        for depth in (1, 2)[: 1 if options.quick else 2]:
            inner, outer, accuracy = functions(network(activation, depth, 0)[1])
            problem = bx.Problem(bx.GradientStep(inner), outer)
            algorithm = bx.BSGM(bx.JointSID(STEPS), bx.optim("adam", learning_rate=RATE))
            for seed in seeds:
                (train, val, test), w0 = draw(seed), network(activation, depth, seed)[0]
                sources = bx.Arrays(train, batch_size=BATCH), bx.Arrays(val, batch_size=BATCH)
                equal = []

                def watch(progress, equal=equal, accuracy=accuracy, test=test):
                    equal[:] = equal or [float(accuracy(progress.w, *test))]

                clock, cpu = time.perf_counter(), time.process_time()
                how = {"steps": most, "key": jax.random.key(seed), "callback": watch, "every": 1}
                result = bx.minimize(problem, algorithm, w0, np.zeros(TRAIN, np.float32), *sources, **how)
                clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
                weighted, before = float(accuracy(result.w, *test)), equal[0] if equal else float("nan")
                rows.append({
                    "units": activation.__name__, "hidden": depth, "seed": seed, "equal": before, "weights": weighted,
                    "gain": weighted - before, "code": bx.Code(result.code).name, "steps": len(result.history.code),
                    "damping": result.config.get("damping"), "seconds": clock, "CPU seconds": cpu,
                })  # fmt: skip
                table(*rows[-1].values())
                if result.code >= bx.Code.NOT_CONTRACTIVE:
                    print("   ", result.message, flush=True)
    store.keep(options, {"rows": rows})
