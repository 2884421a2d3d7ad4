"""What is found out before a method is chosen: of what is typical, or by trials on a few of the rows."""

import math
from typing import NamedTuple

import jax
from jax import Array

from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, entries
from bilevax.planning.pilot import (
    FURTHER,
    NEAR,
    SHORTER,
    SOLVED,
    Option,
    Sources,
    Start,
    deterministic_for,
    followed,
    joint_sid_for,
    measured,
    ran,
    sid_for,
    trial_samples,
    tried,
    tried_shortly,
)
from bilevax.problems.problem import Problem

PASSES = 10
"""Passes over train, where there is no trial, from which on every row is read at once."""

NOISE = 1.5
"""Relative error of a method on minibatches after N steps, times sqrt(N), that is hardly ever undercut."""

BEGUN = 0.5
"""Relative error in a trial above which a method has not begun to converge: a longer run is promised no less."""


class Pilot(NamedTuple):
    """What is known before a method is chosen.

    Attributes:
        problem: as it was handed in.
        start: the best that is known.
        lam: where the hypergradient is wanted.
        sources: in minibatches.
        budget: samples.
        price: of a row that is read along with every other.
        spent: samples of the pilot.
        found: predicted relative errors, and the methods.
        notes: what the user should know.
        estimate: of the method that was found, where its run was the pilot.
    """

    problem: Problem
    start: Start
    lam: PyTree
    sources: Sources
    budget: float
    price: float
    spent: int = 0
    found: tuple[tuple[float, Option], ...] = ()
    notes: tuple[str, ...] = ()
    estimate: Estimate | None = None

    @property
    def passes(self) -> float:
        """Over train, that the budget allows."""
        return self.budget / self.price / self.sources[0].rows

    @property
    def trial(self) -> float:
        """What a trial of a deterministic method takes of the budget."""
        return self.price * trial_samples(self.sources[0].rows, self.passes)

    def untried(self, goal: float, key: Array) -> "Pilot":
        """Without a trial: SID with steps that fall soon or, from :data:`PASSES` on, a deterministic method.

        What a trial would tell costs as much as the run: so it is run, with ``goal`` its tolerance, and by its own
        report predicted.
        """
        if self.passes < PASSES:
            problem, step, samples = measured(*self._at(key))
            option = sid_for(problem, step, self.budget - samples, self.sources)
        else:
            problem, samples = followed(*self._at(key))
            option = self._deterministic(problem, self.budget - samples)
        if option is None:
            return self._replace(spent=samples)
        est, predicted = ran(option, self.start, self.lam, goal, key=jax.random.fold_in(key, 0))
        notes = (
            "there was no trial on some of the rows: the method was run on all of them, which gives what is predicted"
            " and what `run` returns",
        )
        return self._replace(spent=samples, found=((predicted, option),), notes=notes, estimate=est)

    def tried(self, sample: Sources, key: Array) -> "Pilot":
        """With a deterministic method tried on a few rows: it has there the iterations that it would have."""
        problem, samples = followed(*self._at(key))
        option = self._deterministic(problem, self.budget - samples - self.trial)
        trial = tried(option, self._solver(problem), self.start, self.lam, sample, key=key)
        # w of fewer rows than that overfits them: w0 is then the better start
        near = sample[0].rows >= NEAR * entries(self.start.w) and math.isfinite(trial.left)
        return self._replace(
            start=Start(trial.w, trial.v) if near else self.start,
            spent=samples + int(self.price * trial.spent),
            found=((trial.left, option),) if option else (),
        )

    def tried_on_minibatches(self, sample: Sources, key: Array) -> "Pilot":
        """With JointSID tried on a few rows, other ones: an eighth of its steps, from where it would start.

        The error falls with the square root of the steps, if it is below :data:`BEGUN`. Where the deterministic method
        is sure to be better, this is left out.
        """
        least = min((left for left, _ in self.found), default=math.inf)
        # NOISE / sqrt(N) is hardly ever undercut: a trial that cannot win is not paid for
        longest = joint_sid_for(self.problem, 1.0, self.budget - self.spent, self.sources)
        if not longest or least < NOISE / longest.estimator.steps**0.5:
            return self
        problem, step, samples = measured(*self._at(key))
        shorter = joint_sid_for(problem, step, (self.budget - self.spent - samples) / SHORTER, sample)
        if not shorter:
            return self._replace(spent=self.spent + samples)
        # the problem that a solver of every row needs, whose step may be another one
        exact = followed(*self._at(key))[0]
        truth = tried(None, self._solver(exact), self.start, self.lam, sample, key=key)
        left, used = tried_shortly(shorter, self.start, self.lam, truth.value, key=key)
        spent = self.spent + samples + int(self.price * truth.spent) + used
        longer = joint_sid_for(problem, step, self.budget - spent, self.sources)
        # the error falls as N^-1/2
        if longer and left < BEGUN:
            left *= (shorter.estimator.steps / longer.estimator.steps) ** 0.5
        found = (left, longer), (least, self._deterministic(exact, self.budget - spent) if self.found else None)
        return self._replace(spent=spent, found=tuple((left, option) for left, option in found if option))

    def _at(self, key: Array) -> tuple[Problem, PyTree, PyTree, RowSource, Array]:
        return self.problem, self.start.w, self.lam, self.sources[0], key

    def _deterministic(self, problem: Problem, budget_left: float) -> Option | None:
        return deterministic_for(problem, self.start.w, budget_left / self.price, self.sources)

    def _solver(self, problem: Problem) -> Option:
        """Of the few rows."""
        train, val = self.sources
        budget_left = max(FURTHER * self.passes, SOLVED) * train.rows + val.rows
        option = deterministic_for(problem, self.start.w, budget_left, self.sources)
        assert option is not None
        return option
