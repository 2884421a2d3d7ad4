"""Every test runs in float64, with strict dtype promotion, and without silent broadcasting over ranks."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: threads that wait for each other do so at full speed

import jax
import jax.numpy as jnp
import pytest

from bilevax.core.config import config
from bilevax.core.keys import stream
from bilevax.core.protocols import Draw
from bilevax.testing.tools import Table

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's job in the background has it from birth
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # where a primitive was written, nobody reads: a twelfth
gc.set_threshold(50_000, 20, 100)  # to look for cycles among the many small objects of traces took a fifth of the time

OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11, 1) else ""  # gone since
QUICK_TO_COMPILE = f"--xla_cpu_parallel_codegen_split_count=1 {OLD_EMITTERS}"
"""Halves what XLA takes for a small program. Sums may be rounded otherwise."""


def pytest_configure(config):
    """The default suite compiles thousands of small programs; the slow tests run what users run."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), QUICK_TO_COMPILE])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """``slow_but(*cases)``: a slow test, some cases of which, by their ids, are in the default suite."""
    for item in items:
        mark = item.get_closest_marker("slow_but")
        if mark is not None and item.callspec.id not in mark.args:
            item.add_marker(pytest.mark.slow)


@config
class Scripted(Table):
    """Rows whose minibatches are written down beforehand, one script a stream.

    A stream is recognised by its key. One without a script, and a minibatch beyond the end of its script, read NaN.

    Args:
        data: a pytree of floating arrays that share their leading axis n.
        base: the key that is given to the estimator.
        scripts: {name of a stream: row numbers, integers [steps, b]}; all of one shape.
    """

    base: object
    scripts: dict

    @property
    def rows_per_batch(self):
        return next(iter(self.scripts.values())).shape[1]

    def plan_chunk(self, plan, key, j, first):
        if plan is None:
            plan = jnp.full_like(next(iter(self.scripts.values())), self.rows)
        for name, script in self.scripts.items():
            same = jnp.all(jax.random.key_data(key) == jax.random.key_data(stream(self.base, name)))
            plan = jnp.where(same, script, plan)
        return plan

    def visit(self, plan, j, use):
        rows = jnp.take(plan, j, axis=0, mode="fill", fill_value=self.rows)
        batch = jax.tree.map(lambda a: jnp.take(a, rows, axis=0, mode="fill", fill_value=jnp.nan), self.data)
        return use(Draw(batch, -1, 1.0))


@pytest.fixture(name="Scripted", scope="session")
def scripted():
    """The class of scripted sources."""
    return Scripted


@pytest.fixture(scope="module", autouse=True)
def _quick_to_compile(request):
    """The default suite spares the compiler its optimisations: most programs run once. ``OPTIMISED`` modules do not.

    The slow tests, which are asked for by ``-m``, run optimised programs, as users do.
    """
    quick = request.config.option.markexpr == "not slow" and not getattr(request.module, "OPTIMISED", False)
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture
def hasty():
    """For what runs once in an ``OPTIMISED`` module, and is compared to rounding only: its programs are not."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Compilations:
    """Counts what JAX compiles from now on."""

    def __init__(self):
        self.number = 0
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event, duration, **details):
        self.number += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="session")
def compilations():
    """Whose ``number`` is that of all compilations so far."""
    return Compilations()


@pytest.fixture
def refused(compilations):
    """refused(call, error, match): the call is refused with the sentence, and nothing was compiled before."""

    def check(call, error, match):
        before = compilations.number
        with pytest.raises(error, match=match) as caught:
            call()
        assert before == compilations.number
        assert "\n" not in str(caught.value)

    return check


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs of a module are dropped after it: thousands in one process exhaust its memory maps."""
    yield
    jax.clear_caches()


MAPS = 30_000
"""Memory maps of a process after which its programs are dropped; Linux allows 65,530, and XLA crashes beyond."""


@pytest.fixture(autouse=True)
def _few_maps(request):
    """Slow tests may compile hundreds of programs each: they are dropped before the module ends, if they are many."""
    yield
    maps = Path("/proc/self/maps")
    if request.node.get_closest_marker("slow") and maps.exists() and len(maps.read_bytes().splitlines()) > MAPS:
        jax.clear_caches()
