"""Conjugate gradients on arrays of the host, for the Newton steps and the adjoints of table models."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Solved(NamedTuple):
    """What conjugate gradients found.

    Attributes:
        x: the solution.
        products: with H, that it took.
        converged: whether no more is left than should be.
        image: U (x - start).
    """

    x: np.ndarray
    products: int
    converged: bool
    image: np.ndarray | float = 0.0


def conjugate_gradients(
    product: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | float]],
    right: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    *,
    tolerance: float,
    most: int,
    start: np.ndarray | None = None,
) -> Solved:
    """x with H x = right: until the residual in the norm of M^-1 is that part of the right-hand side's.

    Along a direction without curvature, which H near a minimum may have, it ends.

    Args:
        product: d -> (H d, U d), with H symmetric and U linear; 0 where no image of the solution is wanted.
        right: of any shape.
        precondition: r -> M^-1 r, M near H.
        tolerance: of the residual.
        most: products.
        start: of x; None: 0.
    """
    x, products = np.zeros_like(right) if start is None else start.copy(), 0
    image: np.ndarray | float = 0.0
    r = right - product(x)[0] if x.any() else right.copy()
    d = z = precondition(r)
    # r' M^-1 r <= tolerance^2 right' M^-1 right
    size, goal = float(np.vdot(r, z)), tolerance**2 * float(np.vdot(right, z if start is None else precondition(right)))
    while size > goal and products < most:
        Hd, Ud = product(d)
        curvature = float(np.vdot(d, Hd))
        # to rounding there is none left along d
        if curvature <= 0.0:
            break
        # a = r' z / d' H d, z = M^-1 r
        a = size / curvature
        x += a * d
        image = image + a * Ud
        r -= a * Hd
        z = precondition(r)
        size, last = float(np.vdot(r, z)), size
        # d = z + (r' z new / r' z before) d
        d = z + size / last * d
        products += 1
    return Solved(x, products, size <= goal, image)
