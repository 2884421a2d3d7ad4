"""Stochastic approximation of a fixed point: it finds w, and it solves the linear system for v."""

from bilevax.core.config import Steps, check_count, check_fields, config, or_none, positive, positive_fraction
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree
from bilevax.solvers.chain import PLAIN, Chain, Rule
from bilevax.solvers.schedules import Constant, StepSize, schedule


@config
class FixedPoint(Chain):
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j), j < steps: stochastic approximation of a fixed point.

    Assumes that T is a contraction in expectation. For T = Phi(., lam) and Phi a gradient step this is stochastic
    gradient descent; for T(v) = d1Phi^T v + g it is the linear solver of SID.

    On full batches its moves are monitored: it ends early with NOT_CONTRACTIVE where they grow, and the code is
    TOLERANCE_NOT_MET where the estimated error is more than ``tol``.

    On minibatches a chain of more than ten steps is under suspicion where it ends three times as far from its start as
    it was half-way, or has grown by 1e12: 400 steps of a coupled pair tell whether it is NOT_CONTRACTIVE, UNSTABLE (the
    mean map contracts) or DIVERGED. So q = 1.3 is named after 20 steps and q = 1.1 after 50, whatever the additive
    noise. A random walk (q = 1) is not told from slow contraction, nor is a second moment that grows while the chain
    at hand does not.

    With ``average`` the mean of the last points is returned (Polyak, Ruppert), whose noise falls as 1 / steps at a
    constant step size too, where that of the last point stays. For an affine T that is the best there is; of another
    the mean is off by the curvature of T. Its error report is from every row where that is cheap; that from snapshots
    takes its noise for that of a single point.

    Cost: ``steps`` minibatches; 400 more under suspicion, and 50 products on every row where growth is found.
    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122; averaging: Polyak, Juditsky (1992); of the last points
    alone: Rakhlin, Shamir, Sridharan (2012), arXiv:1109.5647.

    Args:
        steps: t (or k), a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        step_size: eta_j: a number in (0, inf), or :class:`Constant`, :class:`Harmonic`, :class:`Polynomial`, or any
            function of j. Restarts at j = 0 for every hypergradient. Default 1: the map itself.
        tol: relative error of x above which the code is TOLERANCE_NOT_MET, estimated on full batches. Default 0.1.
        confirm: test a suspicion that the iteration does not contract (default). False: take it for proof, and do not
            record the step at which x was lost: it compiles in half of the time, and is right where the code is less
            than NOT_CONTRACTIVE.
        average: part of the steps, the last, of whose points the mean is returned, in ]0, 1]; None (default): the last
            point. On full batches there is no noise to average, and it plays no part; a run that is continued goes on
            from the mean.

    Examples:
        >>> import bilevax as bx
        >>> bx.FixedPoint(1000)  # whole steps of the map
        FixedPoint(steps=1000, step_size=Constant(value=1.0), tol=0.1, confirm=True, average=None)
        >>> bx.FixedPoint(1000, bx.Harmonic(beta=20.0, gamma=40.0)).step_size  # minibatches want falling ones
        Harmonic(beta=20.0, gamma=40.0)
    """

    steps: Steps
    step_size: StepSize = Constant(1.0)
    tol: float = 0.1
    confirm: bool = True
    average: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count, average=or_none(positive_fraction), step_size=schedule)

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves; ``args`` are those of T."""
        return PLAIN._replace(average=self.average)


@config
class Given:
    """The inner problem is solved already: w is the start value. Cost: nothing.

    Examples:
        >>> import bilevax as bx
        >>> bx.SID(bx.Given(), bx.CG())  # w0 is the solution already
        SID(inner=Given(), linear=CG(tol=1e-06, max_steps=1000, damping=0.0), cross_batches=None, outer_batches=None)
    """
