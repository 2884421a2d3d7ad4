"""What does bx.Online cost: a training loop whose hyperparameters move, against the same loop with them held?

Loops as users write them, in equinox and in flax: a network of two hidden layers with batch normalisation and dropout,
Adam with its count, a fresh key for every update, minibatches and guide minibatches of one size from a table in memory.
Held: a ``lax.scan`` of the update. Moved at K = 1: a scan of ``online.step`` with

- *rates*: the learning rate and a decay for each of the three layers;
- *weights*: those of four sources of rows, and that of a second loss, of the size of the logits.

The three take turns, on one thread of one core; a ratio is that of their medians of process CPU time. The update and a
gradient of the guide loss are about twice the update: no way to the hypergradient is shorter.
"""

import argparse
import json
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from benchmarks import machine, store

FEATURES, CLASSES, SOURCES, RATE = 64, 10, 4, 1e-3
GOALS = {"rates": 2.2, "weights": 3.0}
LAM = {"rate": RATE, "decay": {"first": 1e-4, "second": 1e-4, "last": 1e-4}}


class Shape(NamedTuple):
    """Of a loop."""

    hidden: int
    batch: int
    steps: int
    rows: int = 20_000


class Loop(NamedTuple):
    """What a framework makes of the network: its arrays, a function of them, and the name of a parameter's layer."""

    parameters: Any
    statistics: Any
    logits: Any  # (parameters, statistics, x, key or None) -> logits, statistics; a key is for training


def of_equinox(hidden: int) -> Loop:
    import equinox as eqx
    import jax

    class Net(eqx.Module):
        first: eqx.nn.Linear
        first_norm: eqx.nn.BatchNorm
        second: eqx.nn.Linear
        second_norm: eqx.nn.BatchNorm
        last: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __init__(self, key: Any) -> None:
            keys = jax.random.split(key, 3)
            norm = partial(eqx.nn.BatchNorm, hidden, axis_name="batch", mode="batch")
            self.first, self.first_norm = eqx.nn.Linear(FEATURES, hidden, key=keys[0]), norm()
            self.second, self.second_norm = eqx.nn.Linear(hidden, hidden, key=keys[1]), norm()
            self.last, self.dropout = eqx.nn.Linear(hidden, CLASSES, key=keys[2]), eqx.nn.Dropout(0.2)

        def __call__(self, x: Any, state: Any, key: Any) -> Any:
            x, state = self.first_norm(self.first(x), state)
            x, state = self.second_norm(self.second(jax.nn.relu(x)), state)
            return self.last(self.dropout(jax.nn.relu(x), key=key)), state

    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    parameters, rest = eqx.partition(net, eqx.is_inexact_array)

    def logits(parameters: Any, state: Any, x: Any, key: Any) -> Any:
        net = eqx.combine(parameters, rest)
        keys = None if key is None else jax.random.split(key, len(x))
        net = net if key is not None else eqx.nn.inference_mode(net)
        axes = 0, None, None if key is None else 0
        return jax.vmap(net, in_axes=axes, out_axes=(0, None), axis_name="batch")(x, state, keys)

    return Loop(parameters, state, logits)


def of_flax(hidden: int) -> Loop:
    import jax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.first_norm = nnx.Linear(FEATURES, hidden, rngs=rngs), nnx.BatchNorm(hidden, rngs=rngs)
            self.second, self.second_norm = nnx.Linear(hidden, hidden, rngs=rngs), nnx.BatchNorm(hidden, rngs=rngs)
            self.last, self.dropout = nnx.Linear(hidden, CLASSES, rngs=rngs), nnx.Dropout(0.2)

        def __call__(self, x: Any, rngs: Any) -> Any:
            x = jax.nn.relu(self.first_norm(self.first(x)))
            x = jax.nn.relu(self.second_norm(self.second(x)))
            return self.last(self.dropout(x, rngs=rngs))

    graph, parameters, statistics = nnx.split(Net(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

    def logits(parameters: Any, statistics: Any, x: Any, key: Any) -> Any:
        net = nnx.merge(graph, parameters, statistics, copy=True)
        if key is None:
            net.eval()
            return net(x, None), statistics
        net.train()
        out = net(x, nnx.Rngs(dropout=key))
        return out, nnx.state(net, nnx.BatchStat)

    return Loop(parameters, statistics, logits)


def train_step(loop: Loop, state: Any, lam: Any, batch: Any, key: Any) -> Any:
    """One update; what of lam is not given counts as one."""
    import jax
    import jax.numpy as jnp
    import optax

    parameters, statistics, optimiser = state
    x, y, source = batch

    def objective(parameters: Any) -> Any:
        logits, new = loop.logits(parameters, statistics, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        if "sources" in lam:
            losses = SOURCES * lam["sources"][source] * losses + lam["second"] * jnp.mean(logits**2, 1)
        return jnp.mean(losses), new

    def moved(path: Any, w: Any, change: Any) -> Any:
        name = str(getattr(path[0], "name", getattr(path[0], "key", "")))
        return w - lam.get("rate", RATE) * (change + lam.get("decay", {}).get(name, 0.0) * w)

    gradient, statistics = jax.grad(objective, has_aux=True)(parameters)
    # eps_root: the root of a square has no derivative where a gradient is 0
    change, optimiser = optax.scale_by_adam(eps_root=1e-12).update(gradient, optimiser)
    return jax.tree_util.tree_map_with_path(moved, parameters, change), statistics, optimiser


def guide_loss(loop: Loop, state: Any, lam: Any, batch: Any) -> Any:
    import jax.numpy as jnp
    import optax

    logits, _ = loop.logits(*state[:2], batch[0], None)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))


def timed(name: str, shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Microseconds an update of one framework's loop, held and moved."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import bilevax as bx

    loop, rng = {"equinox": of_equinox, "flax": of_flax}[name](shape.hidden), np.random.default_rng(0)
    x = rng.standard_normal((shape.rows, FEATURES), np.float32)
    y = np.argmax(x @ rng.standard_normal((FEATURES, CLASSES)), 1)
    data = jax.tree.map(jnp.asarray, (x, y, rng.integers(0, SOURCES, shape.rows)))
    at = jnp.asarray(rng.integers(0, shape.rows, (2, shape.steps, shape.batch)))
    keys = jax.random.split(jax.random.key(0), shape.steps)
    w = loop.parameters, loop.statistics, optax.scale_by_adam().init(loop.parameters)
    update, guide = partial(train_step, loop), partial(guide_loss, loop)

    def rows(at: Any) -> Any:
        return jax.tree.map(lambda x: x[at], data)

    @jax.jit
    def held(w: Any, lam: Any) -> Any:
        def step(w: Any, draw: Any) -> Any:
            return update(w, lam, rows(draw[0]), draw[1]), None

        return jax.lax.scan(step, w, (at[0], keys))[0]

    def moving(online: Any) -> Any:
        def step(state: Any, draw: Any) -> Any:
            return online.step(state, rows(draw[0]), rows(draw[1]), draw[2])

        return jax.jit(lambda state: jax.lax.scan(step, state, (*at, keys)))

    equal = {"sources": np.full(SOURCES, 1 / SOURCES, np.float32), "second": np.float32(1e-3)}
    cases: dict[str, Any] = {"held": lambda _: held(w, LAM)}
    for what, lam, transform in (
        ("rates", LAM, "exp"),
        ("weights", equal, {"sources": "softmax", "second": "exp"}),
    ):
        online = bx.Online(update, guide, transform=transform)
        run, state = moving(online), online.init(w, lam)
        code = run(state)[1].code
        assert jnp.all(code == bx.Code.OK), f"{name}, {what}: {jnp.bincount(code)}"
        cases[what] = lambda _, run=run, state=state: run(state)
    times = {what: median(t.cpu) / shape.steps for what, t in machine.alternate(cases, rounds).items()}
    out = []
    for what, seconds in times.items():
        ratio, goal = seconds / times["held"], GOALS.get(what)
        row = {
            "what": f"{name}, {what}",
            "us": 1e6 * seconds,
            "ratio": ratio,
            "batch": shape.batch,
            "hidden": shape.hidden,
        }
        out.append(row | ({} if goal is None else {"goal": goal, "met": ratio <= goal}))
    return out


def arguments(parser: argparse.ArgumentParser) -> None:
    machine.arguments(parser, 15)


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    shapes = (Shape(16, 8, 4, 100),) if options.quick else (Shape(256, 128, 50), Shape(1024, 128, 5))
    rows = []
    for name in ("equinox", "flax"):
        for shape in shapes:
            for row in timed(name, shape, 3 if options.quick else options.rounds):
                if options.quick:  # no goal applies
                    row = {k: v for k, v in row.items() if k not in ("goal", "met")}
                print(
                    json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}),
                    flush=True,
                )
                rows.append(row)
    store.keep(options, {"rows": rows})
