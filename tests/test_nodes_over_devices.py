"""Nodes over devices and processes, by ``jax.shard_map``: the numbers of nodes stacked in one place, to rounding."""

import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import os

import jax

if "OMPI_COMM_WORLD_SIZE" in os.environ:
    jax.distributed.initialize()
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import PartitionSpec as P

import bilevax as bx
from bilevax.solvers.mixing import averaged

jax.config.update("jax_enable_x64", True)
NODES, D, KEY = {nodes}, 3, jax.random.key(0)
rng = np.random.default_rng(0)
mesh = jax.make_mesh((4,), ("nodes",), axis_types=(jax.sharding.AxisType.Auto,))
here, rows = P("nodes"), P(None, "nodes")


def spread(function, specs, out):
    over = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False))

    def whole(*at):
        found = over(*jax.tree.map(np.asarray, at))
        assert all(len(a.sharding.device_set) == 4 for a in jax.tree.leaves(found))
        return process_allgather(found, tiled=True)

    return whole


def same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)


x = jnp.asarray(rng.normal(size=(NODES, D)))
W = bx.Gossip.metropolis(rng.uniform(size=(NODES, NODES)) < 2).matrix
W = 0.5 * W + 0.5 * np.eye(NODES)[np.roll(np.arange(NODES), 1)]
KINDS = {{
    "push-sum": lambda axis: bx.PushSum(3, 0.5, axis),
    "gossip": lambda axis: bx.Gossip(W, 2, axis),
    "ring": lambda axis: bx.Ring(2, 0.2, axis),
    "exact": lambda axis: bx.ExactAverage(axis),
}}
for kind in KINDS.values():
    over = spread(lambda x, kind=kind: averaged(kind("nodes"), x, KEY), (here,), here)
    same(over(x), averaged(kind(None), x, KEY))

X, y = rng.normal(size=(20, NODES, D)), rng.normal(size=(20, NODES))
train, val = (X, y), (X[::2] + 0.1, y[::2])
lam, w0 = jnp.asarray(rng.normal(size=(NODES, D))), jnp.zeros(D)


def outer(w, lam, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def inner(w, lam, batch):
    return outer(w, lam, batch) + jnp.sum(jnp.exp(lam) * w**2) / 2


problem = bx.Problem(bx.GradientStep(bx.MeanOverNodes(inner), 0.05), bx.MeanOverNodes(outer))


def estimate(lam, train, val, axis=None):
    train, val = bx.Arrays(train, 5), bx.Arrays(val)
    method = bx.PushSumHypergradient(bx.GradientPush(20, 0.5), 15, KINDS["push-sum"](axis))
    est = bx.hypergradient(problem, method, w0, lam, train, val, key=KEY, report=False)
    return est.value, est.w, est.v, est.outer_value, est.code


over = spread(lambda *at: estimate(*at, axis="nodes"), (here, rows, rows), (here, P(), P(), P(), P()))
same(over(lam, train, val), estimate(lam, train, val))

composition = bx.Problem(
    bx.Composition(bx.StackOverNodes(lambda lam, batch: jnp.mean(batch[0] * lam, axis=0))),
    bx.MeanOverNodes(lambda w, lam, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2, own="w"),
)


def copies(w0, train, val, axis=None):
    train, val = bx.Arrays(train, 5), bx.Arrays(val)
    method = bx.DSCGD(0.3, 0.1, mixing=KINDS["ring"](axis))

    def step(at, args, k, looks):
        return method.step(composition, at, looks, k)[0]

    at = method.init(composition, w0, jnp.ones(D), (train, val))
    return bx.fold_looks(method.streams((train, val)), step, at, (), key=KEY, start=0, stop=30)


start = jnp.zeros((NODES, D)), train, val
same(spread(lambda *at: copies(*at, axis="nodes"), (here, rows, rows), here)(*start), copies(*start))
print("same in process", jax.process_index(), "of", jax.process_count())
"""


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [pytest.param(4, id="one"), pytest.param(8, id="two")])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_nodes_over_devices_and_processes_are_those_that_are_stacked(nodes, processes):
    """Messages, hypergradients and compositions, with one node and with two on each of four devices."""
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
        "JAX_PLATFORMS": "cpu",
    }
    launch = ["-c", "from bilevax.cli import main; main()", "launch", "-n", str(processes), "--restarts", "0", "--"]
    words = [*([sys.executable, *launch] if processes > 1 else []), sys.executable, "-c", SCRIPT.format(nodes=nodes)]
    done = subprocess.run(words, env=os.environ | flags, capture_output=True, text=True, check=False, timeout=1200)
    # wherever in a line: libraries that connect the processes write to the same place
    said = sorted(re.findall(r"same in process \d of \d", done.stdout))
    assert said == [f"same in process {i} of {processes}" for i in range(processes)], done.stderr[-2000:]
