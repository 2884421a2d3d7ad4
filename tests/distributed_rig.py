"""What a group of processes computes, written down by the first of them.

``python tests/distributed_rig.py OUT NAME ...`` alone, or behind ``bilevax launch -n N --``.
"""

import os
import signal
import sys
from pathlib import Path

N, D, STRATA = 123, 4, 8


def rows():
    """(train, val), numbers of rows that nothing divides."""
    import numpy as np

    rng = np.random.default_rng(0)
    effect = rng.normal(size=D)
    for n in (N, 71):
        X = rng.normal(size=(n, D))
        yield X, X @ effect + 0.5 * rng.normal(size=n)


def problem():
    import jax.numpy as jnp

    import bilevax as bx

    def loss(w, lam, batch):
        X, y = batch
        return 0.5 * jnp.mean((X @ w - y) ** 2)

    def penalised(w, lam, batch):
        return loss(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    return bx.Problem(bx.GradientStep(penalised, 0.3), loss, bx.Box(-8.0, 2.0))


def sources(devices):
    """The rows in strata over so many devices."""
    import jax

    import bilevax as bx

    mesh = jax.make_mesh((devices,), ("rows",), devices=jax.devices()[:devices])
    return [bx.sharded(bx.Arrays(part, b), mesh, STRATA) for part, b in zip(rows(), (16, 8), strict=True)]


def estimators():
    import bilevax as bx

    steps = bx.FixedPoint(200, bx.Harmonic(2.0, 4.0))
    return {
        "JointSID": bx.JointSID(200),
        "SID": bx.SID(steps, steps, cross_batches=10),
        "exact": bx.SID(bx.LBFGS(), bx.CG()),
    }


def algorithms():
    import bilevax as bx

    steps = bx.FixedPoint(20)
    return {
        "SOBA": bx.SOBA(0.1, 0.3),
        "measured": bx.SOBA(),
        "AmIGO": bx.AmIGO(0.1, 0.3, inner_steps=3, linear_steps=3),
        "BSGM": bx.BSGM(bx.SID(steps, steps, cross_batches=2), bx.optim("sgd", 0.3)),
    }


def dealt(w):
    """An array over all devices, by its leading axis; of a mesh whose axes are not yet the compiler's."""
    import jax

    kinds = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((jax.device_count(),), ("entries",), axis_types=kinds)
    return jax.device_put(w, jax.NamedSharding(mesh, jax.P("entries")))


class Struck:
    """Ends the last process of a group at outer step 30, once; the steps at which it began are lines of a file."""

    def __init__(self, file):
        self.file = Path(file)

    def begin(self, progress):
        import jax

        self.last = jax.process_index() == jax.process_count() - 1
        if self.last:
            with self.file.open("a") as file:
                file.write(f"{progress.step}\n")

    def __call__(self, progress):
        if self.last and progress.step == 30 and len(self.file.read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def computed(name, train, val, run=None, steps=40, callbacks=()):
    """Its numbers; of a name that begins with ``dealt``, w is dealt to the devices, too, and stays so."""
    import jax
    import numpy as np

    import bilevax as bx

    key, start, apart = jax.random.key(1), (np.zeros(D), np.zeros(D)), name.startswith("dealt ")
    if apart:
        name, start = name.removeprefix("dealt "), (dealt(start[0]), start[1])
    if name in algorithms():
        best, ends = bx.EarlyStopping(steps), {"steps": steps, "every": 10}
        out = bx.minimize(
            problem(), algorithms()[name], *start, train, val, **ends, key=key, run=run, callback=[best, *callbacks]
        )
        found = out.w, best.best.w, out.lam, out.history.outer_value, out.history.gradient_norm, out.code
    elif name in estimators():
        out = bx.hypergradient(problem(), estimators()[name], *start, train, val, key=key)
        found = out.value, out.w, out.v, out.outer_value, out.code, out.error
    else:
        raise ValueError(name)
    if apart:
        from jax.experimental.multihost_utils import process_allgather

        of_w = found[:2] if name in algorithms() else found[1:3]
        assert {s.data.shape for x in of_w for s in x.addressable_shards} == {(D // jax.device_count(),)}
        assert sum(not getattr(x, "is_fully_replicated", True) for x in jax.tree.leaves(found)) == 2
        found = [x if getattr(x, "is_fully_replicated", True) else process_allgather(x, tiled=True) for x in found]
    return np.concatenate([np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(found)])


def struck(directory, train, val):
    """A run of which a process is killed and that goes on from its checkpoint, and one that is let be."""
    import bilevax as bx

    found = computed("dealt measured", train, val, bx.Run(directory, 0.0), callbacks=[Struck(f"{directory}.began")])
    return [found, computed("dealt measured", train, val)]


def first_state(train, val):
    """How many entries a device has of the first w, u and lam."""
    import jax
    import numpy as np

    import bilevax as bx
    from bilevax.problems.strata import over_strata
    from bilevax.runs.callbacks import Callbacks
    from bilevax.runs.course import Course, Setting

    start, rows = (dealt(np.zeros(D)), np.zeros(D)), (train, val)
    given = over_strata(problem(), *rows), bx.SOBA(0.1, 0.3), start, rows, jax.random.key(1), 5, Callbacks(None)
    return [x.addressable_shards[0].data.size for x in Course.begun(Setting(*given)).state]


def refusals():
    """What each call says whose arguments are not the same in all processes."""
    import jax
    import numpy as np

    import bilevax as bx

    rank, mesh, key = jax.process_index(), jax.make_mesh((jax.device_count(),), ("rows",)), jax.random.key(0)
    (X, y), _ = rows()
    train, val = sources(jax.device_count())
    zeros, apart = np.zeros(D), dealt(np.zeros(D))

    def said(call):
        try:
            call()
        except bx.BilevaxError as fault:
            return str(fault)
        return ""

    mine = jax.make_mesh((1,), ("rows",), devices=jax.local_devices())
    first = bx.minimize(problem(), bx.SOBA(), zeros, zeros, train, val, steps=3, key=key)
    again = first.w, first.lam  # in every process, and whole
    return np.array(
        [
            said(lambda: bx.sharded(bx.Arrays((X + rank, y), 16), mesh)),
            said(lambda: bx.sharded(bx.Arrays((X[rank:], y[rank:]), 16), mesh)),
            said(lambda: bx.sharded(bx.Arrays((X, y), 16), mine)),
            said(lambda: bx.hypergradient(problem(), estimators()["exact"], zeros + rank, zeros, train, val, key=key)),
            said(lambda: bx.minimize(problem(), bx.SOBA(), zeros, zeros, train, val, steps=3 + rank, key=key)),
            said(lambda: bx.minimize(problem(), bx.SOBA(), zeros, apart, train, val, steps=3, key=key)),
            said(lambda: bx.minimize(problem(), bx.SOBA(), (apart, zeros)[rank], zeros, train, val, steps=3, key=key)),
            said(lambda: bx.minimize(problem(), bx.SOBA(), apart, zeros, *[bx.Arrays((X, y))] * 2, steps=3, key=key)),
            said(lambda: bx.minimize(problem(), bx.SOBA(), *again, train, val, steps=3, key=key)),
        ]
    )


def main(out, *names):
    import jax

    jax.config.update("jax_enable_x64", True)
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        jax.distributed.initialize()
    import numpy as np

    train, val = sources(jax.device_count())
    others = {
        "refusals": refusals,
        "struck": lambda: struck(f"{out}.run", train, val),
        "first": lambda: first_state(train, val),
    }
    found = {name: others[name]() if name in others else computed(name, train, val) for name in names}
    if jax.process_index() == 0:
        with Path(out).open("wb") as file:
            np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
