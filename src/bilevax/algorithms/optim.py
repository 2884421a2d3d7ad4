"""Outer optimisers by name and numbers, so that a changed learning rate compiles nothing."""

import optax

from bilevax.core.config import check_real, config
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree


@config
class Optim:
    """An optax optimiser as a name and numbers; made by :func:`optim`."""

    name: str
    numbers: dict[str, float]

    def transformation(self) -> optax.GradientTransformation:
        """The optax object, with these numbers (which may be traced)."""
        return getattr(optax, self.name)(**self.numbers)

    def init(self, lam: PyTree) -> PyTree:
        """The optimiser's state at lam."""
        return self.transformation().init(lam)

    def update(self, gradient: PyTree, state: PyTree, lam: PyTree) -> tuple[PyTree, PyTree]:
        """The change of lam, and the new state."""
        change, state = self.transformation().update(gradient, state, lam)
        return change, state


def optim(
    name: str,
    learning_rate: float,
    *,
    momentum: float | None = None,
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
) -> Optim:
    """An optax optimiser whose numbers are arguments of the compiled program.

    ``optax.sgd(0.1) != optax.sgd(0.1)``, so a raw optax object that is built again is compiled again; this one is not.

    Args:
        name: of a function in optax, such as ``"sgd"``, ``"adam"``, ``"rmsprop"``.
        learning_rate: positive.
        momentum: as in optax; None: its default, here and below.
        b1: as in optax.
        b2: as in optax.
        eps: as in optax.
        weight_decay: as in optax.

    Raises:
        ParameterError: optax has no optimiser of this name, or it does not take one of the numbers.

    Examples:
        >>> optim("adam", learning_rate=0.05) == optim("adam", learning_rate=0.05)
        True
    """
    if not callable(getattr(optax, name, None)):
        raise ParameterError(f"optax has no optimiser {name!r}; for example 'sgd', 'adam', 'rmsprop'")
    # only what is given: optax's own defaults hold for the rest
    numbers = {"learning_rate": check_real("learning_rate", learning_rate, low=0.0, open_low=True)}
    options = {"momentum": momentum, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    numbers |= {k: check_real(k, v) for k, v in options.items() if v is not None}
    # built once, here, so that a wrong name or number is refused before anything is compiled
    made = Optim(name, numbers)
    try:
        built = made.transformation()
    except TypeError as e:
        raise ParameterError(f"optax.{name} does not take these numbers: {e}") from None
    # optax has functions of other kinds, such as schedules, that take a learning rate
    if not isinstance(built, optax.GradientTransformation):
        raise ParameterError(f"optax.{name} is no optimiser")
    return made
