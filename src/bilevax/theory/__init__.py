"""Formulas on numbers, no sampling: exact moments."""

from bilevax.theory.moments import (
    HypergradientMoments,
    LinearMoments,
    Moments,
    QuadraticMoments,
    hypergradient_moments,
    inner_moments,
    known,
    linear_moments,
    sid_moments,
)

__all__ = [
    "HypergradientMoments",
    "LinearMoments",
    "Moments",
    "QuadraticMoments",
    "hypergradient_moments",
    "inner_moments",
    "known",
    "linear_moments",
    "sid_moments",
]
