"""Runs that take no time: of the command as its directory sees it, where all follows from one number; of minimize."""

import contextlib
import json
import tomllib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from bilevax.core.errors import DataError
from bilevax.core.run_files import read_run_files
from bilevax.runs.checkpoints import Checkpoints, Run
from bilevax.study import read_model
from bilevax.study.model_file import model_from_bytes
from bilevax.study.run_directory import RunDirectory
from bilevax.tables.linear import LinearModel
from bilevax.tables.terms import Term


def study_of(slope):
    """What the command hands to a run directory, without any tuning."""
    terms = (Term("x", "number", "number"),)
    model = LinearModel("y", ("a", "b"), np.zeros(1), np.array([[slope]]), terms, (1.0,))
    plain = {"kind": "step", "code": "OK", "seconds": 1.0, "visits": 9, "validation_loss": None, "gradient_norm": None}
    events = [{**plain, "step": step, "tuning_loss": slope / (1 + step)} for step in range(3)]
    config = {"data": {"slope": slope}}
    return SimpleNamespace(model=model, events=events, interrupted=False, config=lambda: config)


def tune(root, slope, *, wait=lambda: None, **options):
    """The life of a run in ``root / "run"``, which waits before it writes anything."""
    study = study_of(slope)
    with RunDirectory(root / "run", **options) as run:
        wait()
        if run.ended:
            return
        run.begin({"tune": {"slope": slope}})
        for step, event in enumerate(study.events):
            run.append(event)
            with Checkpoints(Run(run.checkpoints, keep=1)) as store:
                if store.newest() is None:
                    store.save(step, {}, {"w": np.full(2, slope)})
        run.finish(study, lambda found: f"<p>{slope}</p>")


def resume(root, slope):
    """By ``resume`` where there is something to be resumed, else by ``--force``."""
    with contextlib.suppress(DataError):
        tune(root, slope, resume=True)
    if run_in(root) != run_of(slope):
        tune(root, slope, force=True)


def run_of(slope):
    study = study_of(slope)
    return study.model.to_plain(), study.events, study.config() | {"tune": {"slope": slope}}


def run_in(root):
    """What a reader sees; None where none has ended."""
    try:
        found = read_run_files(root / "run", without=())
    except DataError:
        return None
    if not found.finished:
        return None
    contents, model = found.files, model_from_bytes(found.files["model.safetensors"], found.path)
    read_model(root / "run")
    events = [json.loads(line) for line in contents["metrics.jsonl"].splitlines()]
    assert json.loads(contents["coefficients.json"]) == model.to_plain()
    assert contents["report.html"].decode() == f"<p>{model.coef[0, 0]}</p>"
    return model.to_plain(), events, tomllib.loads(contents["config.toml"].decode())


X, Y = np.random.default_rng(0).normal(size=(8, 2)), np.arange(8.0)


def outer_loss(w, lam, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2)


def inner_loss(w, lam, batch):
    return outer_loss(w, lam, batch) + lam * w @ w


def minimise(run, callback=None):
    """Three steps of a ridge regression; the bits of what is returned."""
    problem, rows = bx.Problem(bx.GradientStep(inner_loss), outer_loss), bx.Arrays((X, Y), 2)
    given = (problem, bx.SOBA(0.1, 0.5), np.zeros(2), np.ones(()), rows, rows)
    result = bx.minimize(*given, steps=3, every=1, key=jax.random.key(0), run=run, callback=callback)
    return [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(result[:4] + result.history[:3])]
