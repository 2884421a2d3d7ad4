"""What many runs say of their errors, and how often it is so."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np


def flat(tree: Any, axes: int = 0) -> np.ndarray:
    """Entries of a tree like lam, along the last axis, behind so many axes."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:axes], -1) for x in leaves], axis=-1)


class Said(NamedTuple):
    """What runs say of themselves, [...] or [..., m]."""

    code: np.ndarray
    value: np.ndarray
    standard_error: np.ndarray
    bias: np.ndarray
    sampling: np.ndarray  # half widths of the intervals for the mean of the runs
    half: np.ndarray  # of those for the truth
    confidence: np.ndarray  # of the sign
    relative: np.ndarray
    upper: np.ndarray
    degrees_of_freedom: np.ndarray

    @classmethod
    def of(cls, code: Any, error: Any) -> "Said":
        """From the codes and reports of many runs."""
        shape, axes = np.shape(code), np.ndim(code)
        every = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[axes:]), error)
        relative, upper = jax.vmap(lambda e: (e.relative, e.upper))(every)
        found = []
        for i in range(len(relative)):
            one = jax.tree.map(lambda x, i=i: x[i], every)
            ends = (one.interval(bias=bias) for bias in (False, True))
            found.append([*(0.5 * (flat(high) - flat(low)) for low, high in ends), flat(one.sign_confidence)])
        parts = np.moveaxis(np.array(found), 1, 0).reshape(3, *shape, -1)
        numbers = (np.asarray(x, np.float64).reshape(shape) for x in (relative, upper, every.degrees_of_freedom))
        value, standard_error, bias = (flat(x, axes) for x in (error.value, error.standard_error, error.bias))
        return cls(np.asarray(code), value, standard_error, bias, *parts, *numbers)


@dataclass(frozen=True)
class Share:
    """How often, among how many, and the standard error where what comes from one problem is a cluster."""

    hits: int
    number: int
    error: float

    @classmethod
    def of(cls, hits: np.ndarray, among: np.ndarray, cluster: np.ndarray | None = None) -> "Share":
        """Of flags, by cluster: the first axis, or its entries' numbers; flags [runs, m] belong to their run."""
        among = np.broadcast_to(among[(...,) + (None,) * (hits.ndim - among.ndim)], hits.shape)
        axes = tuple(range(1, hits.ndim))
        cluster = np.arange(len(hits)) if cluster is None else cluster
        size = int(cluster.max()) + 1 if len(cluster) else 0
        total = np.bincount(cluster, np.sum(hits & among, axis=axes), size)
        number = np.bincount(cluster, np.sum(among, axis=axes), size)
        mean = total.sum() / max(number.sum(), 1.0)
        spread = np.sqrt(np.sum((total - mean * number) ** 2)) / max(number.sum(), 1.0)
        return cls(int(total.sum()), int(number.sum()), float(spread))

    @property
    def value(self) -> float:
        """NaN of nothing."""
        return self.hits / self.number if self.number else float("nan")

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"share": round(self.value, 6), "error": round(self.error, 6), "of": self.number}

    def __str__(self) -> str:
        """In percent, with its 95 % interval; without a hit, the upper end is 3 over the number."""
        if not self.number:
            return "-"
        high = self.value + 1.96 * self.error if self.hits else 3.0 / self.number
        return f"{100 * self.value:.2f} [{100 * max(self.value - 1.96 * self.error, 0):.2f}, {100 * high:.2f}]"


def pool(shares: list[Share]) -> Share:
    """Of separate clusters."""
    number = sum(s.number for s in shares)
    error = np.sqrt(sum((s.error * s.number) ** 2 for s in shares)) / max(number, 1)
    return Share(sum(s.hits for s in shares), number, float(error))
