"""The exact hypergradient where a solver came to."""

import numpy as np
from benchopt import BaseObjective

from bilevax.testing.tasks import named_task
from bilevax.testing.tools import vector


class Objective(BaseObjective):
    """|grad f|^2 over that at the start, and f, both of every row and in float64."""

    name = "Bilevel optimisation"
    url = "https://github.com/bilevax/bilevax"
    min_benchopt_version = "1.10"
    requirements = ("pip::bilevax",)
    sampling_strategy = "iteration"

    def set_data(self, problem):
        self.task = named_task(problem)
        self.start = self._size(self.task.truth(self.task.w0, self.task.lam))

    def get_objective(self):
        return {"task": self.task}

    def evaluate_result(self, w, lam, samples):
        found = self.task.truth(w, lam)
        return {"value": self._size(found) / self.start, "outer_value": found.value, "samples": samples}

    def get_one_result(self):
        return {"w": self.task.w0, "lam": self.task.lam, "samples": 0}

    @staticmethod
    def _size(truth):
        return float(np.sum(vector(truth.hypergradient) ** 2))
