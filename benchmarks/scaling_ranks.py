"""What a process of a group times, for ``scaling``: ``python -m benchmarks.scaling_ranks NAME ARGUMENTS`` (as JSON)."""

import json
import os
import sys
import time
from functools import partial
from typing import Any

ROUNDS = 5
"""Times of which the median is taken."""


def spread(function: Any, *args: Any) -> float:
    """Median seconds of a program in which every process has all of the arguments."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((jax.device_count(),), ("hosts",))
    program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def reduce(sizes: list[int], times: int) -> list[float]:
    """Seconds of an all-reduce of so many float32, for each size."""
    import jax
    import jax.numpy as jnp

    def reduced(_: Any, x: Any) -> Any:
        return jax.lax.pmean(x, "hosts")

    def many(x: Any) -> Any:
        return jax.lax.fori_loop(0, times, reduced, x)

    return [spread(many, jnp.ones(size, jnp.float32)) / times for size in sizes]


def step(shapes: list[tuple[int, int]], times: int, averaged: bool) -> list[float]:
    """Seconds of a gradient step of linear regression on so many rows of each process, for each (rows, size of w)."""
    import jax
    import jax.numpy as jnp

    def many(X: Any, w: Any) -> Any:
        def one(_: Any, w: Any) -> Any:
            d = X.T @ (X @ w) / len(X)
            return w - 1e-9 * (jax.lax.pmean(d, "hosts") if averaged else d)

        return jax.lax.fori_loop(0, times, one, w)

    return [spread(many, jnp.ones((b, d), jnp.float32), jnp.ones(d, jnp.float32)) / times for b, d in shapes]


def main() -> None:
    import jax

    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        jax.distributed.initialize()
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    found = partial({"reduce": reduce, "step": step}[name], *arguments)()
    if jax.process_index() == 0:
        print(json.dumps({"seconds": found}))


if __name__ == "__main__":
    main()
