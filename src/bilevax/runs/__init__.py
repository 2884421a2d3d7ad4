"""One driver for every algorithm."""

from bilevax.runs.minimize import Progress, minimize

__all__ = ["Progress", "minimize"]
