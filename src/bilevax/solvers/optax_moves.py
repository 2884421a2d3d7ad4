"""Any optax transformation as a solver, for w and for v."""

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import optax

from bilevax.core.config import Steps, check_count, check_fields, config, positive
from bilevax.core.errors import ParameterError
from bilevax.core.promotion import usual_promotion
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, scale, sub
from bilevax.solvers.chain import Chain, Rule, View


@runtime_checkable
class Transformation(Protocol):
    """An optax transformation, or what is called like one, such as ``bilevax.optim("adam", learning_rate=.1)``."""

    @property
    def init(self) -> Callable[[PyTree], PyTree]:
        """X -> state."""

    @property
    def update(self) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]:
        """(gradient, state, x) -> (change of x, state)."""


@config
class Optax(Chain):
    """x_{j+1} = x_j + update(x_j - T(x_j; zeta_j)), j < steps: an optax transformation, whose state is carried.

    Its gradient is the residual x - T(x): s grad G of a gradient step of size s, A v - g of the linear system. So
    ``bilevax.optim("sgd", learning_rate=1.0)`` is the map itself. A raw optax object that is built again is compiled
    again, one of ``bilevax.optim`` is not.

    Assumes that the transformation converges. Whether it contracts is not tested: the codes are NONFINITE, DIVERGED
    (x has grown by 1e12) and, on full batches, TOLERANCE_NOT_MET where the moves to come, as the last ones tell, are
    longer than ``tol``. Of chains of minibatches an error report is made from every row, where that is cheap; of
    shorter ones nothing is known, and no estimate is OK. A run that is continued begins with a new state. Cost:
    ``steps`` minibatches. Source: DeepMind (2020), optax.

    Args:
        transformation: with ``init`` and ``update``.
        steps: as in :class:`~bilevax.FixedPoint`.
        tol: likewise.

    Examples:
        >>> import bilevax as bx
        >>> bx.Optax(bx.optim("adam", learning_rate=0.01), steps=500).steps
        500
    """

    # it brings its own, and no suspicion of it is tested
    step_size: ClassVar[None] = None
    confirm: ClassVar[bool] = False

    transformation: Transformation
    steps: Steps
    tol: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count)
        if not isinstance(self.transformation, Transformation):
            raise ParameterError(
                'transformation must be one of optax, or bx.optim("adam", learning_rate=0.1), got'
                f" {self.transformation!r}"
            )

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves."""

        def move(x: PyTree, state: PyTree, view: View) -> tuple[PyTree, PyTree, PyTree]:
            residual = scale(-1.0 * view.weight, view.direction(x))
            # optax relies on JAX's usual dtype promotion
            with usual_promotion():
                change, state = self.transformation.update(residual, state, x)
                new = optax.apply_updates(x, change)
            return new, state, sub(new, x)

        return Rule(self.transformation.init, move, None)
