"""Runs that are killed with SIGKILL at random times, and go on until they end.

``python tests/kill_rig.py KILLS [NAME ...]`` kills each of them, or of those that are named, so many times. Each run is
a process of its own, forked from one that has imported everything and computed nothing; compiled programs come from
JAX's persistent cache.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ALGORITHMS = ("SOBA", "SABA", "AmIGO")
"""A single loop, whose steps are measured; variance reduction, whose state is a table; two loops."""

CACHED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "OPENBLAS_NUM_THREADS": "1",
}


def minimise(name, directory):
    """The digests of what a run returns, but for the seconds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bilevax as bx

    rng = np.random.default_rng(0)
    X = rng.normal(size=(48, 5))
    y = X @ rng.normal(size=5) + rng.normal(size=48)

    def inner(w, lam, batch):
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) / 2 + jnp.exp(lam["l2"]) * w @ w / 2

    def outer(w, lam, batch):
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) / 2

    rows, held_out = (bx.Arrays(rows, 4, sampling="blocks") for rows in ((X[:32], y[:32]), (X[32:], y[32:])))
    algorithm = {
        "SOBA": bx.SOBA(),
        "SABA": bx.SABA(step_size=0.05, ratio=0.5),
        "AmIGO": bx.AmIGO(step_size=0.05, ratio=0.5, inner_steps=3, linear_steps=3),
    }[name]
    result = bx.minimize(
        bx.Problem(bx.GradientStep(inner), outer),
        algorithm,
        np.zeros(5),
        {"l2": np.zeros(())},
        rows,
        held_out,
        steps=400,
        every=20,
        key=jax.random.key(1),
        run=None if directory is None else bx.Run(directory, seconds=0),
    )
    history = result.history._replace(seconds=None)
    parts = {"w": result.w, "lam": result.lam, "history": history, "code": result.code, "cost": result.cost}
    return {part: _digest(tree) for part, tree in parts.items()}


LINEAR = ("--model", "linear", "--steps", "30")


def tune(directory):
    """The digests of what the command writes for a table, but for the seconds; it goes on where it was killed."""
    from functools import partial

    import bilevax.runs
    from bilevax.cli import main

    bilevax.runs.Run = partial(bilevax.runs.Run, seconds=0)
    begun = any((path / "manifest.json").exists() for path in directory.parent.glob(f"{directory.name}*"))
    words = ["resume", str(directory)] if begun else ["tune", "iris", "--out", str(directory), *LINEAR]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    assert code == 0, (words, code)
    found = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    records = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    for record in records:
        record.pop("seconds", None)
    found["metrics.jsonl"] = json.dumps(records).encode()
    # which says that it was resumed
    settings = tomllib.loads(found["config.toml"].decode())
    settings.pop("resumed", None)
    found["config.toml"] = json.dumps(settings).encode()
    # which hold seconds, too
    del found["report.html"], found["manifest.json"]
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def _digest(tree):
    import jax
    import numpy as np

    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(repr((x.dtype, x.shape)).encode() + x.tobytes() for x in leaves)).hexdigest()


def serve():
    """For each line [name, directory, out] a process, whose number is said at once, and its status at its end."""
    import warnings

    import jax

    import bilevax.cli.tune
    import bilevax.study  # noqa: F401
    from bilevax.study.linear import fit_linear  # noqa: F401
    from bilevax.study.study import tune_table  # noqa: F401

    warnings.simplefilter("ignore", RuntimeWarning)  # of a fork, before which nothing is computed
    jax.config.update("jax_enable_x64", True)
    while line := sys.stdin.readline():
        name, directory, out = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    digests = tune(Path(directory)) if name == "tune" else minimise(name, directory)
                    Path(out).write_text(json.dumps(digests))
                    status = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())
            os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()  # its number is not given anew before it has been killed
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Server:
    """Starts runs.

    Args:
        root: of all that they write.
    """

    def __init__(self, root):
        self.out = root / "out.json"
        environment = os.environ | CACHED | {"JAX_COMPILATION_CACHE_DIR": str(root / "cache")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__, "serve"], env=environment, **pipes)

    def run(self, name, directory, seconds=None):
        """What it returned, if it was not killed after that time; else None."""
        self.out.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps([name, directory and str(directory), str(self.out)]) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in (0, -9), f"{name} ended with {status}"
        return json.loads(self.out.read_text()) if status == 0 else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()


def kill(root, name, kills, seed=0):
    """Kill runs that many times and compare each that ends with the undisturbed one; how many ended."""
    rng, ended, killed = random.Random(f"{name} {seed}"), 0, 0
    with Server(root) as server:
        # killed while it compiles for the first time, too
        server.run(name, root / name, 1.5)
        # undisturbed: minimize without any directory
        wanted = server.run(name, root / "undisturbed" if name == "tune" else None)
        shutil.rmtree(root / name, ignore_errors=True)
        began = time.monotonic()
        assert server.run(name, root / name) == wanted
        life = time.monotonic() - began
        shutil.rmtree(root / name)
        while killed < kills:
            found = server.run(name, root / name, rng.uniform(0, life))
            if found is None:
                killed += 1
                continue
            assert not {part for part in wanted if found[part] != wanted[part]}, name
            assert server.run(name, root / name) == wanted  # at once
            ended += 1
            shutil.rmtree(root / name)
        assert server.run(name, root / name) == wanted
    return ended + 1


def main(kills, names):
    """Kill each so many times, and say what that took."""
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            began = time.monotonic()
            ended = kill(Path(root), name, kills)
            seconds = time.monotonic() - began
            print(f"{name}: {kills} kills, {ended} runs ended, bits equal, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else main(int(sys.argv[1]), sys.argv[2:] or (*ALGORITHMS, "tune"))
