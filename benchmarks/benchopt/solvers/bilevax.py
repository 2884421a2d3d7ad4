"""Every algorithm of bilevax, each as it is built without arguments, and the plain deterministic method."""

import jax
from benchopt import BaseSolver
from benchopt.stopping_criterion import NoCriterion

import bilevax as bx
from bilevax.core.errors import ParameterError
from bilevax.testing.entrants import ENTRANTS

SAMPLES = 1_000
"""To a unit of benchopt's stop value."""


class Solver(BaseSolver):
    """A run from the start, of so many thousand samples."""

    name = "bilevax"
    requirements = ("pip::bilevax",)
    parameters = {"algorithm": list(ENTRANTS), "seed": [0]}
    sampling_strategy = "iteration"
    stopping_criterion = NoCriterion()

    def skip(self, task):
        try:
            ENTRANTS[self.algorithm](None).check(task.problem)
        except ParameterError as e:
            return True, str(e)
        return False, None

    def set_objective(self, task):
        self.task, self.made = task, ENTRANTS[self.algorithm](None)
        # samples of a step, without what is read to measure the steps
        few = min(8, self.made.steps_per_record)
        samples = self._minimize(2 * few, few).history.samples
        self.each = max(float(samples[-1] - samples[-2]) / few, 1.0)

    def get_next(self, stop_val):
        return max(1, 2 * stop_val)

    def warm_up(self):
        self.run(1)

    def run(self, stop_val):
        self.result = self._minimize(max(1, int(SAMPLES * stop_val / self.each)), None)

    def get_result(self):
        found = self.result
        return {"w": found.w, "lam": found.lam, "samples": found.cost.samples}

    def _minimize(self, steps, every):
        key = jax.random.key(self.seed)
        return bx.minimize(self.task.problem, self.made, *self.task[2:6], steps=steps, every=every, key=key)
