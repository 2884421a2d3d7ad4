"""Twenty families of random problems, of kinds that estimators find hard: ten for choosing constants, ten for judging.

What is chosen by looking at the one half (a constant of an error report, of a planner) is judged on the other, on draws
that nobody has seen: the seed of a judging run is made of the commit that is judged.
"""

import zlib

import numpy as np

from bilevax.problems import GradientStep, Problem
from bilevax.testing.choosing import CHOOSING
from bilevax.testing.closed_forms import Curvature
from bilevax.testing.judging import JUDGING
from bilevax.testing.truth import Drawn, Family, NamedProblem

FAMILIES = CHOOSING | JUDGING


def drawn_from(name: str, number: int) -> NamedProblem:
    """A problem of a family; it is solved for its curvature."""
    family = FAMILIES[name]
    drawn = family.recipe(np.random.default_rng([zlib.crc32(name.encode()), number]))
    if not family.descends:
        p = _named(name, family, drawn, Problem(family.inner, family.outer), Curvature(1.0, 1.0))
        # bounds on I - d1Phi, from its singular values at the solution
        singular = np.linalg.svd(p.system(p.solution().w), compute_uv=False)
        return _named(name, family, drawn, p.problem, Curvature(float(singular[0]), float(singular[-1])))
    curvature = Curvature(1.0, 1.0)
    # the curvature at w0 gives a step for the way to the solution, and that at the solution the one that belongs there
    for solved in (False, True):
        p = _descending(name, family, drawn, curvature)
        # H = (I - d1Phi) / alpha
        eigenvalues = np.linalg.eigvalsh(p.system(p.solution().w if solved else drawn.w0)) / curvature.alpha
        curvature = Curvature(float(eigenvalues[-1]), float(max(eigenvalues[0], 0.0)))
    return _descending(name, family, drawn, curvature)


def _descending(name: str, family: Family, drawn: Drawn, curvature: Curvature) -> NamedProblem:
    problem = Problem(GradientStep(family.inner, curvature.alpha), family.outer)
    return _named(name, family, drawn, problem, curvature)


def _named(name: str, family: Family, drawn: Drawn, problem: Problem, curvature: Curvature) -> NamedProblem:
    train, val, lam, w0 = drawn
    return NamedProblem(name, problem, train, val, w0, lam, family.batch_size, curvature, family.sampling)
