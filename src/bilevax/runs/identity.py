"""What makes two runs the same: their settings, their functions, their data, and what computes them."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from bilevax.core.config import qualname, to_plain
from bilevax.core.dealt import whole
from bilevax.core.errors import MismatchError, ParameterError
from bilevax.core.events import Plain
from bilevax.core.keys import is_key
from bilevax.core.protocols import Algorithm, Sources
from bilevax.core.trees import PyTree, leaf_name
from bilevax.problems.problem import Problem

FEW = 16
"""Entries up to which an array is told by its values, and not by its SHA-256."""

ARRAYS = {"array", "dtype"}, {"shape", "dtype", "sha256"}, {"key", "impl"}
"""What the descriptions of a small array, of a large one and of a key have."""

PACKAGES = ("bilevax", "jax", "jaxlib", "numpy")


def identity(
    problem: Problem, algorithm: Algorithm, start: PyTree, sources: Sources, key: jax.Array, **settings: int | None
) -> Plain:
    """All that decides the bits of a run, in plain values.

    Functions are told by the programs that they become on this problem's shapes, whatever their names are: a loss that
    was changed is found, whether it is a lambda or closes over an array.
    """
    examples = [source.example() for source in sources]
    inner, outer = problem.with_unit_step().inner_image, problem.outer_loss
    return {
        "problem": described(problem),
        "algorithm": described(algorithm),
        **settings,
        "key": to_plain(key),
        **dict(zip(("w0", "lam"), map(described, start), strict=True)),
        **dict(zip(("train", "val"), map(described, sources), strict=True)),
        "functions": {"inner": _program(inner, *start, examples[0]), "outer": _program(outer, *start, examples[1])},
    }


@functools.cache
def machine() -> Plain:
    """What else the bits of a run depend on: versions, device, threads."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    several = {"devices": jax.device_count()} if jax.device_count() > 1 else {}
    return versions | {"python": platform.python_version(), "device": device.device_kind, "cores": cores} | several


def described(value: PyTree) -> PyTree:
    """A configuration, a source or a tree of arrays in plain values: of equal ones the same, in every process."""
    if isinstance(value, jax.Array | np.ndarray) and not is_key(value) and np.size(value) > FEW:
        a = np.ascontiguousarray(whole(value))
        sha256 = hashlib.sha256(a.reshape(-1).view(np.uint8).data).hexdigest()
        return {"shape": list(a.shape), "dtype": str(a.dtype), "sha256": sha256}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # not what numbers a thing in this process alone; and a field that earlier versions did not have where it is not
        # its default, so that their runs go on
        kept = (f for f in dataclasses.fields(value) if f.metadata.get("told", True))
        told = [f.name for f in kept if not ("added" in f.metadata and _is_default(value, f))]
        return {"type": qualname(type(value)), **{name: described(getattr(value, name)) for name in told}}
    if isinstance(value, Mapping):
        return {str(name): described(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [described(x) for x in value]
    if value is not None and not jax.tree_util.all_leaves([value]):  # a node of another kind
        return {leaf_name("", path): described(x) for path, x in jax.tree_util.tree_leaves_with_path(value)}
    plain = to_plain(whole(value))
    return _function(value, plain["function"]) if isinstance(plain, dict) and "function" in plain else plain


def _is_default(value: PyTree, field: dataclasses.Field[PyTree]) -> bool:
    given = getattr(value, field.name)
    return type(given) is type(field.default) and bool(given == field.default)


def _function(function: Callable[..., PyTree], name: str) -> Plain:
    """By name, without its module, which is another where a script is run or imported; a schedule by its program."""
    told = {"function": _nameless(name.rpartition(":")[2])}
    try:
        return told | {"program": _program(function, np.int32(0))}
    except Exception:  # whatever a function raises that is none of a step's number
        return told


def _program(function: Callable[..., PyTree], *arguments: PyTree) -> str:
    """SHA-256 of what a function becomes when it is traced, with the constants that it closes over."""
    traced = jax.make_jaxpr(function)(*arguments)
    digest = hashlib.sha256(_nameless(str(traced)).encode())
    for constant in traced.consts:
        digest.update(str(described(constant)).encode())
    return digest.hexdigest()


def _nameless(text: str) -> str:
    """Without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def check_same(
    saved: Plain, given: Plain, override: tuple[str, ...], *, without: tuple[str, ...] = ()
) -> dict[str, str]:
    """What differs and may, by name.

    Args:
        saved: the :func:`identity` of the run that was begun.
        given: of the one that is to go on.
        override: names of what may differ; one of a group is for all in it.
        without: names that are not compared.

    Raises:
        MismatchError: something else differs.
        ParameterError: there is nothing of such a name.
    """
    for name in override:
        if _group(name) not in {*given, "ended"}:
            raise ParameterError(f"override names {name!r}, which is none of {', '.join([*given, 'ended'])}")
    found = {name: text for name, text in _differences("", saved, given) if _group(name) not in without}
    refused = {
        n: text for n, text in found.items() if not any(n == o or n.startswith((f"{o}.", f"{o}[")) for o in override)
    }
    if refused:
        told = "; ".join(f"{name}: {text}" for name, text in refused.items())
        raise MismatchError(
            f"the run was begun with other values than are given now: {told} (give the same ones, or name what may"
            f" differ in bx.Run(..., override=({next(iter(refused))!r},)), or choose another directory)"
        )
    return found


def _group(name: str) -> str:
    """``train`` of ``train.data[0]``."""
    return re.split(r"[.[]", name)[0]


def _differences(name: str, saved: PyTree, given: PyTree) -> Iterator[tuple[str, str]]:
    if saved == given:
        return
    if _is_alike(saved, given):
        for key in given:
            yield from _differences(f"{name}.{key}" if name else key, saved[key], given[key])
    elif _are_leaves(saved) and _are_leaves(given) and len(saved) == len(given):
        for i, (a, b) in enumerate(zip(saved, given, strict=True)):
            yield from _differences(f"{name}[{i}]", a, b)
    else:
        yield name, f"{_short(saved)} -> {_short(given)}"


def _is_alike(saved: PyTree, given: PyTree) -> bool:
    """True for two descriptions whose parts can be compared one by one."""
    if not (isinstance(saved, dict) and isinstance(given, dict)) or saved.keys() in ARRAYS:
        return False
    return saved.keys() == given.keys() and saved.get("type") == given.get("type")


def _are_leaves(value: PyTree) -> bool:
    """True for descriptions one after another."""
    return isinstance(value, list) and all(isinstance(x, dict) for x in value)


def _short(value: PyTree) -> str:
    """In few words."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['dtype']}{value['shape']} {value['sha256'][:8]}"
    if isinstance(value, dict) and value.keys() == {"key", "impl"}:
        return str(value["key"]["array"])
    if isinstance(value, dict) and ("function" in value or value.keys() == {"array", "dtype"}):
        return str(value.get("function", value.get("array")))
    if isinstance(value, dict) and "type" in value:
        return str(value["type"]).rpartition(":")[2]
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
