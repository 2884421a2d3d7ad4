"""Steps that are affine in the state for a given draw: their mean, their exact second moment, where they settle.

A state is x = (..., 1), so that an affine map is a matrix M. With independent draws of mean M and second moment
E[M kron M], E x and E[x x'] after any number of steps, and in the long run, are products and one linear solve.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple, TypeAlias

import numpy as np

from bilevax.testing.closed_forms.quadratic import Floats


class RandomMap(NamedTuple):
    """A random matrix by its first two moments.

    Attributes:
        mean: E M, [p, q].
        second: E[M kron M], [p^2, q^2].
    """

    mean: Floats
    second: Floats

    def __matmul__(self, first: "RandomMap") -> "RandomMap":
        """This map after an independent first one."""
        # E[M N kron M N] = E[M kron M] E[N kron N]
        return RandomMap(self.mean @ first.mean, self.second @ first.second)

    def power(self, steps: int) -> "RandomMap":
        """So many independent ones in turn."""
        if steps == 1:
            return self
        return RandomMap(np.linalg.matrix_power(self.mean, steps), np.linalg.matrix_power(self.second, steps))

    def moments(self, start: Floats) -> tuple[Floats, Floats]:
        """E x and E[x x'] after the map, of x = (start, 1)."""
        x = np.append(start, 1.0)
        return (self.mean @ x)[:-1], (self.second @ np.outer(x, x).ravel()).reshape(2 * x.shape)

    @property
    def fixed_point(self) -> Floats:
        """The state x of which M x = x in the mean, without its 1."""
        # (I - A) x = a of M = [[A, a], [0, 1]]
        size = len(self.mean) - 1
        return np.linalg.solve(np.eye(size) - self.mean[:size, :size], self.mean[:size, size])

    @property
    def stationary(self) -> Floats:
        """E[x x'] in the long run; x is (..., 1), so its last column is E x."""
        # S = E[M S M'] with S = 1 in the last entry, the only one that all M keep
        size = len(self.second) - 1
        S = np.linalg.solve(np.eye(size) - self.second[:size, :size], self.second[:size, size])
        return np.append(S, 1.0).reshape(2 * self.mean.shape[:1])

    @property
    def mean_rate(self) -> float:
        """By which factor a step brings E x nearer to the fixed point; below one if it does."""
        return _radius(self.mean)

    @property
    def rate(self) -> float:
        """By which factor a step brings E[x x'], of which E x is a part, nearer to where it settles."""
        return _radius(self.second)


def mixture(maps: Sequence[RandomMap]) -> RandomMap:
    """One of them, each as likely."""
    return RandomMap(*(np.mean(parts, axis=0) for parts in zip(*maps, strict=True)))


class Stage(NamedTuple):
    """M = fixed + mean of train_i + mean of val_j, over one minibatch each: a part of a step that draws once.

    Attributes:
        fixed: [p, q].
        train: a row each of the inner loss, [n, p, q]; None: nothing is drawn.
        val: a row each of the outer loss, [n', p, q]; None: nothing is drawn.
        repeat: how often it comes in turn, each time with draws of its own.
    """

    fixed: Floats
    train: Floats | None = None
    val: Floats | None = None
    repeat: int = 1

    def moments(self, batch_size: int | None, val_size: int | None) -> RandomMap:
        """For independent rows; of no given size: every row."""
        mean, noise = self.fixed, np.zeros([size**2 for size in self.fixed.shape])
        for rows, size in ((self.train, batch_size), (self.val, val_size)):
            if rows is not None:
                mean = mean + rows.mean(0)
                # Cov of the mean of b rows = Cov of one / b
                noise += _covariance(rows) / size if size else 0.0
        return RandomMap(mean, np.kron(mean, mean) + noise).power(self.repeat)

    def given(self, train: Iterator[Floats], val: Iterator[Floats]) -> Floats:
        """M on the next minibatches of each source, given as the weights of its rows, [n] and [n']."""
        out = np.eye(self.fixed.shape[1])
        for _ in range(self.repeat):
            M = self.fixed
            for rows, draw in ((self.train, train), (self.val, val)):
                M = M if rows is None else M + np.tensordot(next(draw), rows, 1)
            out = M @ out
        return out


Stages: TypeAlias = tuple[Stage, ...]
"""A step: in turn, with independent draws."""


def moments(stages: Stages, batch_size: int | None = None, val_size: int | None = None) -> RandomMap:
    """Of a step, with minibatches of so many independent rows; None: every row."""
    first, *others = (stage.moments(batch_size, val_size) for stage in stages)
    return reduce(lambda done, stage: stage @ done, others, first)


def coordinates(*sizes: int) -> list[Floats]:
    """The parts of a state (..., 1) as matrices that take them out of it, [size, sum of sizes + 1]; the last is its 1.

    A formula written with them gives its matrix.
    """
    return np.split(np.eye(sum(sizes) + 1), np.cumsum(sizes))


def state(*parts: Floats) -> Floats:
    """Parts of a new state one below the other, a row each or not."""
    leading = np.broadcast_shapes(*(part.shape[:-2] for part in parts))
    return np.concatenate([np.broadcast_to(part, (*leading, *part.shape[-2:])) for part in parts], axis=-2)


def _radius(matrix: Floats) -> float:
    """Largest |eigenvalue| but for the 1 of the last entry, which stays."""
    return float(np.abs(np.linalg.eigvals(matrix[:-1, :-1])).max())


def _covariance(rows: Floats) -> Floats:
    """E[M kron M] - E M kron E M over the rows, [p^2, q^2]."""
    n, p, q = rows.shape
    spread = (rows - rows.mean(0)).reshape(n, p * q)
    # [p q, p q] by products of entries (a, c), (b, d) to [(a, b), (c, d)]
    products = (spread.T @ spread / n).reshape(p, q, p, q)
    covariance: Floats = products.transpose(0, 2, 1, 3).reshape(p * p, q * q)
    return covariance
