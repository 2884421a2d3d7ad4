"""ALSET: w and lam move in turn, on one timescale; one drawn term of a Neumann series is the multiplier.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam), one minibatch of val, and as many
of train as moves and factors, as looks. Out, to the loop: the next (w, lam).
"""

from typing import ClassVar

from bilevax.algorithms.bsa import BSA
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import config


@config
class ALSET(BSA):
    """Alternating stochastic gradient steps: of w, and of lam with one drawn term of a Neumann series for u.

        w   <- w + rho_k (-grad_1 G)                                     ``inner_steps`` times
        u    = K (I - rho_0 H_p) ... (I - rho_0 H_1) rho_0 grad_1 E      p uniform on 0, ..., K - 1; ``linear_steps``
        lam <- P(lam - ratio rho_k (grad_2 E - d2(grad_1 G)^T u))        at the new w

    Steps are in loss form, as in :class:`~bilevax.SOBA`. The step is that of :class:`~bilevax.BSA`; what the paper adds
    is that a single move of w, on the timescale of lam, is enough: with steps of order k^(-1/2) it takes of the order
    of eps^-2 samples to a squared hypergradient of eps. lam ends where the mean direction is 0, whose multiplier is
    (I - (I - rho_0 H)^K) H^-1 grad_1 E. Assumes G strongly convex and smooth losses. Cost: ``inner_steps`` gradients, p
    Hessian-vector products, one cross product, each on rows of its own, and one outer gradient.
    Source: Chen, Sun, Yin (2021), NeurIPS 34, "Closing the gap".

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 1.
        linear_steps: K, from 1 to 256. Default 10.

    Examples:
        >>> import bilevax as bx
        >>> bx.ALSET(step_size=bx.Polynomial(0.1, 0.5), ratio=0.3)
        ALSET(step_size=Polynomial(value=0.1, power=0.5, horizon=1.0), ratio=0.3, inner_steps=1, linear_steps=10)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.2, carried=False, power=0.5)

    inner_steps: int = 1
