"""Result codes: what happened, ordered by severity, so that codes combine with ``max`` inside a program.

Solvers return one each, ``records.first_failure`` makes that of an estimate, and ``Result.code`` is the worst of a
run's outer steps; reports show ``Code(code).message``.
"""

import enum


class Code(enum.IntEnum):
    """Outcome of a computation, an int32 inside compiled programs.

    Codes are ordered by severity: the code of a whole is the ``max`` of the codes of its parts, but of stages one
    after the other the first of NOT_CONTRACTIVE or worse, as later failures are its consequences.
    ``Code(code).message`` says what was seen, the likely causes, and what to try.

    Examples:
        >>> import bilevax as bx
        >>> max(bx.Code.OK, bx.Code.DIVERGED).name  # of a whole: the worst of its parts
        'DIVERGED'
        >>> bx.Code(0).message
        'No failure was seen.'
    """

    # ``max`` compares the numbers, and a History holds them: a new code is inserted by severity and renumbers the rest.
    OK = 0
    TOLERANCE_NOT_MET = 1
    MAX_STEPS = 2
    STALLED = 3
    NOT_CONTRACTIVE = 4
    UNSTABLE = 5
    DIVERGED = 6
    SINGULAR = 7
    INDEFINITE = 8
    NONFINITE_DATA = 9
    NONFINITE = 10

    @property
    def message(self) -> str:
        """Symptom, likely causes and advice, in one paragraph."""
        return _MESSAGES[self]


LARGER = "The estimated error is larger than the tolerance."
# Each is a symptom, its likely causes, and what to try; solvers add nothing to it, so that the advice is in one place.
_MESSAGES = {
    Code.OK: "No failure was seen.",
    Code.TOLERANCE_NOT_MET: (
        f"{LARGER} Likely causes: too few steps, a step size that is too small, an ill-conditioned problem, noise. Try "
        "more steps, longer ones where they were given, or a looser tolerance."
    ),
    Code.MAX_STEPS: (
        "The solver used up its steps before its tolerance was met. Likely causes: too few steps, an "
        "ill-conditioned problem. Try more steps, a looser tolerance of the solver, or a larger penalty."
    ),
    Code.STALLED: (
        "The iterates stopped moving before the tolerance was met. Likely causes: the floor of the floating point "
        "type, a step size that has decayed to nothing, a flat direction of the loss, the bias of `damping`, which no "
        "step lowers. Try float64, a slower decaying schedule, a small penalty, or less `damping`."
    ),
    Code.NOT_CONTRACTIVE: (
        "The inner map does not contract. Likely causes: a step size above 2 / (largest curvature), an inner loss "
        "that is not convex, a map whose Jacobian has norm one or more. Try a smaller step, a larger penalty; where "
        "only the linear system fails, as of a trained network, `Problem(damping=...)`, the first of .001, .01, .1 "
        "that will do; of a map that is no step, w + eta (Phi(w) - w) in its place (`bx.check` says with which eta)."
    ),
    Code.UNSTABLE: (
        "The mean map contracts, but the second moment of the iterates grows: the step is too large for this batch "
        "size. Likely causes: small batches with the step of full ones, a few rows far larger than the others, a "
        "schedule that begins with too long steps. Try larger batches, or smaller or decreasing steps."
    ),
    Code.DIVERGED: (
        "The iterates grew far beyond their start. Likely causes: a step size that is too large for this batch "
        "size, a schedule whose first steps are too long, an inner loss unbounded from below. Try a smaller step, "
        "larger batches, or `Harmonic` with a larger gamma."
    ),
    Code.SINGULAR: (
        "The linear system has no unique solution. Likely causes: an unpenalised direction that the data do not "
        "see, duplicated features, a penalty that underflowed to zero. Try a penalty on every weight, or "
        "`Problem(damping=...)`."
    ),
    Code.INDEFINITE: (
        "The linear system has a direction of negative curvature, or is not symmetric. Likely causes: an inner point "
        "that is not a minimum, an inner loss that is not convex, a wrong sign in the loss, a derivative of your own "
        "that is that of no loss. Try more inner steps, or `Problem(damping=...)`; `GMRES` where the system is not "
        "symmetric."
    ),
    Code.NONFINITE_DATA: (
        "The data contain NaN or infinity. Likely causes: missing cells, a division by zero upstream, an overflow "
        "in a feature. Try to impute or drop these rows before building the source."
    ),
    Code.NONFINITE: (
        "A value became NaN or infinite; the last finite value was kept. Likely causes: divergence, an overflow of "
        "exp(lam), a square root or logarithm at zero in the loss. Try a smaller step, a box around lam, or a safe "
        "form of the loss."
    ),
}
