"""The inner solution on the host, at which the doctor's checks look; no estimate uses it.

In, from ``subject.AuditedProblem``: the inner loss with its gradient on every row, or the move Phi(w) - w of a map
without a loss, and w0 as one vector. Out, to it: w.
"""

import math
from collections import deque
from collections.abc import Callable

import numpy as np

MEMORY = 10
"""Pairs that L-BFGS keeps."""

TRIALS = 30
"""Steps tried along a direction."""

ValueAndGradient = Callable[[np.ndarray], tuple[float, np.ndarray]]


def descended(value_and_gradient: ValueAndGradient, w: np.ndarray, steps: int, rounding: float) -> np.ndarray:
    """The iterate of L-BFGS after so many steps from w [d], or as soon as no step helps; the last finite one.

    A step is taken where the value falls, or where rounding, the unit of w's type, hides that but the slope shrinks: so
    gradients fall below the root of rounding, where scipy's line search ends, which asks that the value falls.
    Source: Nocedal and Wright (2006), algorithms 7.4 and 7.5; Hager and Zhang (2005), section 4.
    """
    value, g = value_and_gradient(w)
    pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=MEMORY)
    first = np.linalg.norm(g)
    for _ in range(steps):
        # below the root of rounding, and above rounding; a NaN ends it, too
        if not np.linalg.norm(g) > 10 * rounding**0.75 * first:
            break
        # p = -H g, H the approximate inverse of the Hessian; steepest descent where that is no descent
        p = -_times_inverse(pairs, g)
        slope = g @ p
        if slope >= 0:
            pairs.clear()
            p, slope = -g, -g @ g
        # what rounding hides of the value; without pairs a first move of length 1 at most
        floor = 10 * rounding * abs(value)
        t = 1.0 if pairs else min(1.0, 1.0 / float(np.linalg.norm(g)))
        low, high = 0.0, math.inf
        for _ in range(TRIALS):
            at, new = value_and_gradient(w + t * p)
            # Armijo, E(w + t p) <= E(w) + 1e-4 t g'p; or its approximate form, (2 delta - 1) g'p with delta = .1
            falls = at <= value + 1e-4 * t * slope or (at <= value + floor and new @ p <= -0.8 * slope)
            # weak Wolfe: the slope has risen to .9 g'p at least; a bisection between too long and too short
            if not falls:
                high = t
            elif new @ p < 0.9 * slope:
                low = t
            else:
                break
            t = (low + high) / 2 if high < math.inf else 4 * t
        else:
            # the longest step that fell, if any did
            if low == 0.0:
                break
            at, new = value_and_gradient(w + low * p)
            t = low
        if not (np.isfinite(at) and np.all(np.isfinite(new))):
            break
        if (new - g) @ p > 0:
            pairs.append((t * p, new - g))
        w, value, g = w + t * p, at, new
    return w


def _times_inverse(pairs: deque[tuple[np.ndarray, np.ndarray]], g: np.ndarray) -> np.ndarray:
    """H g, H the inverse of the Hessian as updated by pairs (s, y) of a step and its change of the gradient."""
    # the last pair first: a = s'q / s'y,  q <- q - a y
    q, factors = g, []
    for s, y in reversed(pairs):
        factors.append(s @ q / (s @ y))
        q = q - factors[-1] * y
    # the start H0 = (s'y / y'y) I, of the last pair
    if pairs:
        s, y = pairs[-1]
        q = q * (s @ y / (y @ y))
    # and back: q <- q + (a - y'q / s'y) s
    for (s, y), a in zip(pairs, reversed(factors), strict=True):
        q = q + (a - y @ q / (s @ y)) * s
    return q


def iterated(move: Callable[[np.ndarray], np.ndarray], w: np.ndarray, steps: int) -> np.ndarray:
    """The iterate of w <- w + move(w) after so many steps; w where moves explode, or the last exceeds the first."""
    x, first, length = w, math.inf, 0.0
    for j in range(steps):
        m = move(x)
        length = float(np.linalg.norm(m))
        first = length if j == 0 else first
        if not np.isfinite(length) or length > 1e3 * (1.0 + first):
            return w
        x = x + m
    return w if length > first > 0 else x
