"""What is made for several nodes, on problems of one: three nodes that share it, for the conformance suites."""

import jax
import jax.numpy as jnp

import bilevax as bx
from bilevax.core.config import config, replace_unchecked
from bilevax.core.records import Info
from bilevax.testing.tools import Wrapped


@config
class NodeRows(Wrapped):
    """Each row three times, as that of three nodes."""

    def total(self, fn, args):
        return self.source.total(lambda args, batch: fn(args, self._spread(batch)), args)

    def example(self):
        return jax.eval_shape(self._spread, self.source.example())

    def visit(self, plan, j, use):
        return self.source.visit(plan, j, lambda draw: use(draw._replace(batch=self._spread(draw.batch))))

    def _spread(self, batch):
        return jax.tree.map(lambda x: jnp.repeat(x[:, None], 3, axis=1), batch)


@config
class AtNodes:
    """An estimator for nodes, on a problem that three nodes share: lam is the same at each."""

    base: object

    def check(self, problem):
        self.base.check(self._shared(problem))

    def estimate(self, instance, w0, *, key, outer_step=0, v0=None):
        problem, lam, train, val = instance
        lams = jax.tree.map(lambda x: jnp.repeat(x[None], 3, axis=0), lam)
        instance = bx.Instance(self._shared(problem), lams, NodeRows(train), NodeRows(val))
        est = self.base.estimate(instance, w0, key=key, outer_step=outer_step, v0=v0)
        # d/dlam is the sum over nodes
        return est._replace(value=jax.tree.map(lambda x: jnp.sum(x, axis=0), est.value))

    def _shared(self, problem):
        step = problem.inner_map
        inner = (
            replace_unchecked(step, loss=bx.MeanOverNodes(step.loss)) if problem.has_loss else bx.MeanOverNodes(step)
        )
        return replace_unchecked(problem, inner_map=inner, outer_loss=bx.MeanOverNodes(problem.outer_loss))


@config
class CompositionAtNodes:
    """DSCGD, on a composition that three nodes share, with their w for its mean."""

    base: object
    steps_per_record = 256

    def check(self, problem):
        if not isinstance(problem.inner_map, bx.Composition):
            raise bx.ParameterError("needs bx.Composition(g) as the inner map")

    def streams(self, sources):
        return self.base.streams(tuple(map(NodeRows, sources)))

    def init(self, problem, w0, lam, sources, u0=None):
        return self.base.init(problem, jax.tree.map(lambda x: jnp.repeat(x[None], 3, axis=0), w0), lam, sources)

    def step(self, problem, state, looks, k):
        g, f = bx.StackOverNodes(problem.inner_map.function), bx.MeanOverNodes(problem.outer_loss, own="w")
        over_nodes = replace_unchecked(problem, inner_map=bx.Composition(g), outer_loss=f)
        state, _ = self.base.step(over_nodes, state, looks, k)
        # the outer value is that of one node's rows, the same at each
        w, lam = self.solution(state)
        value = looks["val"](lambda draw: problem.outer_loss(w, lam, jax.tree.map(lambda x: x[:, 0], draw.batch)))
        return state, Info(outer_value=value)

    def solution(self, state):
        w, lam = self.base.solution(state)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), w), lam

    def outer_step_size(self, k):
        return self.base.outer_step_size(k)

    def step_cost(self, problem, sources):
        return self.base.step_cost(problem, sources)
