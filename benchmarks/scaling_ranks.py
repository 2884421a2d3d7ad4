"""What a process of a group times, for ``scaling``: ``python -m benchmarks.scaling_ranks NAME ARGUMENTS`` (as JSON)."""

import json
import os
import sys
import time
from functools import partial
from typing import Any

ROUNDS = 12
"""Runs of which the quickest counts: others have the machine too."""

TABLE = 1 << 24
"""Entries of a table that no cache holds."""


def spread(function: Any, *args: Any) -> float:
    """Least seconds of a program in which every process has all of the arguments."""
    import jax
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((jax.device_count(),), ("hosts",))
    program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def reduce(sizes: list[int], times: int) -> list[float]:
    """Seconds of an all-reduce of so many float32, for each size."""
    import jax
    import jax.numpy as jnp

    def reduced(_: Any, x: Any) -> Any:
        return jax.lax.pmean(x, "hosts")

    def many(x: Any) -> Any:
        return jax.lax.fori_loop(0, times, reduced, x)

    return [spread(many, jnp.ones(size, jnp.float32)) / times for size in sizes]


def step(shapes: list[tuple[int, int]], times: int) -> list[float]:
    """Seconds of a gradient step of linear regression on so many rows of each process, for each (rows, size of w).

    Minibatches are the blocks of a table too large for a cache, as they are in a long run.
    """
    import jax
    import jax.numpy as jnp

    def timed(b: int, d: int) -> float:
        blocks, steps = max(1, TABLE // (b * d)), min(times, max(3, TABLE // (b * d)))

        def many(table: Any, w: Any) -> Any:
            def one(j: Any, w: Any) -> Any:
                X = jax.lax.dynamic_slice_in_dim(table, j % blocks * b, b)
                return w - 1e-9 * jax.lax.pmean((X @ w) @ X / b, "hosts")

            return jax.lax.fori_loop(0, steps, one, w)

        return spread(many, jnp.ones((blocks * b, d), jnp.float32), jnp.ones(d, jnp.float32)) / steps

    return [timed(b, d) for b, d in shapes]


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
