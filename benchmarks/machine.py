"""One pinned thread, times in alternating order, processes of their own, and the ceilings of the machine."""

import argparse
import contextlib
import gc
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "bilevax", "jax", "jaxlib", "numpy", "scipy", "scikit-learn", "jaxopt", "optimistix", "lineax"

ONE_THREAD = {
    "NPROC": "1",  # the size of XLA's thread pool
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}
XLA_FLAG = "--xla_cpu_multi_thread_eigen=false"
QUICK_FLAG = "--xla_backend_optimization_level=0"
PINNED = "BILEVAX_BENCHMARK_PINNED"


def pin(core: int | str, quick: bool) -> None:
    """Start this command again, once, with one thread on one core: all of it is read before numpy and jax start.

    The same as ``NPROC=1 OMP_NUM_THREADS=1 ... XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c CORE python``.
    A quick run, which measures nothing, also compiles with little optimisation.
    """
    if PINNED in os.environ:
        return
    taskset = shutil.which("taskset")
    flags = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), XLA_FLAG, QUICK_FLAG if quick else None]))
    pinned = f"taskset -c {core}" if taskset else "not pinned: no taskset"
    environment = os.environ | ONE_THREAD | {"XLA_FLAGS": flags, PINNED: pinned}
    command = [sys.executable, *sys.orig_argv[1:]]
    if taskset:
        command = [taskset, "-c", str(core), *command]
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The options of a question that is pinned and takes times in turn."""
    parser.add_argument("--rounds", type=int, default=rounds, help="default %(default)s; with --quick 3")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")


def fresh(
    function: str, *args: Any, cache: str | None = None, cpu_seconds: int | None = None, **environment: str
) -> Any:
    """What a function, ``module:name``, returns in a process of its own: JSON.

    What it prints is printed. Its cache of compiled programs is the folder ``cache``, or none.

    Raises:
        TimeoutError: it, or a process that it started, wanted more CPU seconds than it may have.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    if cache:
        kept |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    # it limits itself: a process in which JAX runs should not fork to do it
    command = [sys.executable, "-m", "benchmarks.machine", function, json.dumps(args), str(cpu_seconds or "")]
    done = subprocess.run(command, env=kept | environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        raise TimeoutError(f"{function} took more than {cpu_seconds} CPU seconds")
    done.check_returncode()
    return json.loads(done.stdout)


def commit(root: Path = ROOT, *, described: bool = False) -> str:
    """The commit of a checkout; ``described``: short, and whether the tree is that of the commit."""
    which = ["describe", "--always", "--dirty", "--abbrev=10"] if described else ["rev-parse", "HEAD"]
    done = subprocess.run(["git", "-C", str(root), *which], capture_output=True, text=True, check=False)
    return "unknown" if done.returncode else done.stdout.strip()


def setting() -> dict[str, Any]:
    """Versions, machine and environment of this run."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    versions["commit"] = commit(described=True)
    names = [*ONE_THREAD, "XLA_FLAGS"]
    return {
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "pinned": os.environ.get(PINNED, "no"),
        "environment": {name: os.environ.get(name, "") for name in names},
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Times(NamedTuple):
    """Seconds of each round: process CPU time and wall time."""

    cpu: list[float]
    wall: list[float]


def alternate(cases: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, Times]:
    """Time the cases in turn, ``rounds`` times; each takes the round's number and gives arrays to wait for.

    Each case runs once before, to compile. The collector of garbage runs between the cases, not within.
    """
    import jax

    for case in cases.values():
        jax.block_until_ready(case(0))
    times = {name: Times([], []) for name in cases}
    gc.disable()
    for i in range(rounds):
        for name, case in cases.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(case(i))
            times[name].cpu.append(time.process_time() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
    gc.enable()
    return times


def times_of_one(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


class Ceilings:
    """What the machine can do on one thread: float32 products, reading in order, gathering rows.

    ``cases`` are timed in alternation with what is held against them; ``rates`` turns the times into ceilings. The
    product is tried in numpy's BLAS and in XLA, and the faster counts. Reading is a dot product of an array much larger
    than the caches with itself. Gathering copies b random rows of d floats at a time to a buffer that stays in cache.
    """

    def __init__(self, X: Any, batch: int, quick: bool) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        rng = np.random.default_rng(0)
        self.size = 256 if quick else 2048
        self.length = 1_000_000 if quick else 64_000_000  # 256 MB
        self.gathers, self.batch, self.width = (20 if quick else 1000), batch, X.shape[1]
        a, b = (rng.standard_normal((self.size, self.size), np.float32) for _ in range(2))
        x = np.ones(self.length, np.float32)
        buffer = np.empty((batch, X.shape[1]), np.float32)
        rows = rng.integers(0, X.shape[0], (self.gathers, batch))
        product, da, db = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)

        def gather(_: int) -> None:
            for chosen in rows:
                np.take(X, chosen, axis=0, out=buffer, mode="clip")

        self.cases: dict[str, Callable[[int], Any]] = {
            "sgemm numpy": lambda _: a @ b,
            "sgemm XLA": lambda _: product(da, db),
            "read": lambda _: x @ x,
            "gather": gather,
        }

    def rates(self, seconds: Callable[[str], float]) -> dict[str, float]:
        """Ceilings in units a second, from the seconds of each case: flop, and bytes read or gathered."""
        return {
            "flop": 2 * self.size**3 / min(seconds("sgemm numpy"), seconds("sgemm XLA")),
            "read": 4 * self.length / seconds("read"),
            "gather": 4 * self.gathers * self.batch * self.width / seconds("gather"),
        }


def peak_bytes() -> int:
    """Peak resident memory of this process.

    Linux hands the parent's peak on to a child's ``ru_maxrss``, so the program's own peak is read where there is one.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    if sys.argv[3]:
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]), int(sys.argv[3]) + 10))
    with contextlib.redirect_stdout(sys.stderr):  # only what it returns goes to where the caller reads
        out = getattr(import_module(module), name)(*json.loads(sys.argv[2]))
    print(json.dumps(out))
