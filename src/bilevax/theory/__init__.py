"""Formulas on numbers, no sampling: constants, bounds, rates, schedules, the efficiency bound, exact moments."""

from bilevax.theory import glm
from bilevax.theory.bounds import a_posteriori_bound, bias_bound, linear_bias_bound, mse_bound
from bilevax.theory.constants import Constants
from bilevax.theory.deterministic import aid_bound, aid_fixed_point_bound, conjugate_gradient_factor, itd_bound
from bilevax.theory.efficiency import Influence, Traces, influence
from bilevax.theory.mean_square import HarmonicSteps, MeanSquare
from bilevax.theory.moments import (
    HypergradientMoments,
    LinearMoments,
    Moments,
    QuadraticMoments,
    hypergradient_moments,
    inner_moments,
    known,
    linear_moments,
    second_moment_rate,
    sid_moments,
)
from bilevax.theory.outer import smoothness, stationarity_bound
from bilevax.theory.schedules import (
    Counts,
    Split,
    burn_in_steps,
    equal_split_mse,
    optimal_split,
    published_steps,
    sample_complexity,
)

__all__ = [
    "Constants",
    "Counts",
    "HarmonicSteps",
    "HypergradientMoments",
    "Influence",
    "LinearMoments",
    "MeanSquare",
    "Moments",
    "QuadraticMoments",
    "Split",
    "Traces",
    "a_posteriori_bound",
    "aid_bound",
    "aid_fixed_point_bound",
    "bias_bound",
    "burn_in_steps",
    "conjugate_gradient_factor",
    "equal_split_mse",
    "glm",
    "hypergradient_moments",
    "influence",
    "inner_moments",
    "itd_bound",
    "known",
    "linear_bias_bound",
    "linear_moments",
    "mse_bound",
    "optimal_split",
    "published_steps",
    "sample_complexity",
    "second_moment_rate",
    "sid_moments",
    "smoothness",
    "stationarity_bound",
]
