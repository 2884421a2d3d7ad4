"""Reward design: rewards under which somebody else's best policy does what is wanted, exactly and from rollouts.

A decision maker with entropy at temperature tau solves for its values; the designer of its rewards r(x) reads its
policy:

    minimise over x   f(x, pi(x)),      pi = softmax(Q / tau),      Q_sa = r_sa(x) + gamma sum_t P_sat V_t,
    V_s = tau log sum_a exp(Q_sa / tau)                             (the soft Bellman fixed point: no convexity)

On a random process f is |x|^2 / 2 + |pi|^2 / 2 with r_sa = c_sa x'Mx; it is solved as published (M-SoBiRL), with ten
sweeps and one move of the normal equations a step, both warm: ``BSGM`` of a ``SID``. On a frozen lake, slippery and
with holes, a short-sighted agent is paid 1 at the goal, and x_s besides in state s; f is minus its chance to be at the
goal after thirty moves, and mu |x|^2 / 2.

Without a model (SoBiRL) there are only rollouts. The gradient is that of a score, grad log pi(a|s) = (grad Q_sa - grad
V_s) / tau, and each grad Q and grad V is the mean of the gradients of the rewards along a further rollout that goes on
with probability gamma: ``ScoreFunction``, whose draws are decisions, and an unbiased score of them.

With one seed: on the random process the hypergradient falls from 9.6 to 3e-10 in 3,000 steps, and from rollouts, of 64
draws a step, to 1e-7 in 600. The mean of 2,000 estimates from rollouts is .4 of its standard error from the truth; on
the lake, of 1,000, no entry is farther from it than 1.7. There the chance of the goal is .044 as it is paid, .339 as
designed with the model, .296 from rollouts in 400 steps.

References: Yang, Gao, Yuan (2024), arXiv:2405.19697, for both methods and the random process; Williams (1992) for the
score.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bilevax as bx

MU, MOVES, LAKE = 0.02, 30, ("S...", ".H.H", "...H", "H..G")
KEY, A = jax.random.key(0), np.random.default_rng(0).normal(size=(100, 100)) / 100


# %%
# A random process of 10 states and 5 actions, and the lake, where a move goes where it should in one case of three,
# else to one of the two sides. P is [S, A, S]; a hole and the goal lead to themselves.


def random_process(states=10, actions=5, seed=0):
    rng = np.random.default_rng(seed)
    P, c = rng.dirichlet(np.ones(states), size=(states, actions)), rng.random((states, actions))
    return {"P": P, "c": c}, rng.normal(size=100)


def lake():
    tiles, side = "".join(LAKE), len(LAKE)
    P, ways = np.zeros((side**2, 4, side**2)), np.array(((0, -1), (1, 0), (0, 1), (-1, 0)))
    for s, a, turn in np.ndindex(side**2, 4, 3):
        row, column = np.clip(np.array(divmod(s, side)) + ways[(a + turn - 1) % 4], 0, side - 1)
        P[s, a, s if tiles[s] in "HG" else side * row + column] += 1 / 3
    return {"P": P, "paid": np.array([float(tile == "G") for tile in tiles])}, np.zeros(side**2)


# %%
# Both decision makers, and what is wanted of each.


def transitions(x, batch):
    return batch["P"]


def random_reward(x, batch):
    return batch["c"] * jnp.sum((A.astype(x.dtype) @ x) ** 2)


def lake_reward(x, batch):
    return jnp.broadcast_to((batch["paid"] + x)[:, None], batch["P"].shape[:2])


RANDOM = bx.SoftBellman(random_reward, transitions, discount=0.5)
AGENT = bx.SoftBellman(lake_reward, transitions, discount=0.8, temperature=0.1)


def random_loss(V, x, batch):
    return 0.5 * jnp.sum(x**2) + 0.5 * jnp.sum(RANDOM.policy(V, x, batch) ** 2)


def lake_loss(V, x, batch):
    chain = jnp.einsum("sa,sat->st", AGENT.policy(V, x, batch), batch["P"])
    return 0.5 * MU * jnp.sum(x**2) - jnp.linalg.matrix_power(chain, MOVES)[0, -1]


# %%
# Decisions (s, a) as they are drawn, by uniform numbers: a state of the random process and two actions in it, which are
# the same with a chance of sum_a pi_a^2; the states of a course over the lake.


def chosen(luck, p):
    return jnp.sum(luck[..., None] > jnp.cumsum(p, -1)[..., :-1], -1)


def two_in_one_state(luck, policy, P):
    s = jnp.full(2, (luck[0, 0] * len(P)).astype(int))
    return s, chosen(luck[:, 1], policy[s])


def course(luck, policy, P):
    def move(s, luck):
        a = chosen(luck[0], policy[s])
        return chosen(luck[1], P[s, a]), (s, a)

    return jax.lax.scan(move, 0, luck)[1]


def same_action(w, lam, batch):
    return 0.5 * len(batch["P"]) * (lam["a"][0] == lam["a"][1]).astype(w.dtype)


def not_at_the_goal(w, lam, batch):
    return -(lam["s"][-1] == len(batch["P"]) - 1).astype(w.dtype)


# %%
# Rollouts. lam has, beside x, places for what is drawn: decisions, which the losses read, and the gradient of their log
# probability. Of two rollouts with the same luck one begins with the decision and one with another; each goes on with
# probability gamma, so that the rewards on its way count in full.


@partial(jax.tree_util.register_dataclass, data_fields=("maker", "table"), meta_fields=("decide", "number", "longest"))
@dataclass(frozen=True)
class Rollouts:
    """Decisions of the best policy at x, with an unbiased estimate of the gradient of their log probability."""

    maker: bx.SoftBellman
    table: bx.Arrays
    decide: object
    number: int
    longest: int = 60

    def draw(self, key, lam, samples):
        """lam with its places filled, [C, m]."""
        x = lam[2 * self.number :].reshape(2, -1)[1]
        rows, none = self.table.data, jnp.zeros(self.table.rows, lam.dtype)
        V = bx.FixedPoint(self.longest).solve(self.maker, none, x, self.table, key=key).value
        policy = self.maker.policy(V, x, rows)

        def one(key):
            first, second, third = jax.random.split(key, 3)
            decided, others = (jax.random.uniform(k, (self.number, n)) for k, n in ((first, 2), (second, 1)))
            luck = jax.random.uniform(third, (self.longest, 3, self.number))
            s, a = self.decide(decided, policy, rows["P"])
            more = self.visits(luck, s, a, policy) - self.visits(luck, s, chosen(others[:, 0], policy[s]), policy)
            # grad log pi(a|s) = (grad Q_sa - grad V_s) / tau, each a sum of grad r over the visits
            score = jax.grad(lambda x: jnp.vdot(self.maker.reward(x, rows), more) / self.maker.temperature)(x)
            return jnp.concatenate([a.astype(x.dtype), s.astype(x.dtype), score, x])

        return jax.vmap(one)(jax.random.split(key, samples))

    def visits(self, luck, s, a, policy):
        """How often rollouts from (s, a) make each decision, [S, A]."""
        P, gamma = self.table.data["P"], self.maker.discount

        def move(at, luck):
            s, a, on, seen = at
            seen, after = seen.at[s, a].add(on), chosen(luck[0], P[s, a])
            return (after, chosen(luck[1], policy[after]), on * (luck[2] < gamma), seen), None

        return jax.lax.scan(move, (s, a, jnp.ones(len(s)), jnp.zeros_like(policy)), luck)[0][3]

    def score(self, lam, drawn):
        """That of x; places have none."""
        places = drawn[:, 2 * self.number :].reshape(len(drawn), 2, -1)
        return jnp.concatenate([jnp.zeros((len(drawn), len(lam) - places.shape[2])), places[:, 0]], axis=1)


# %%
# Each process is solved exactly, by what is wanted of it as a function of the policy; and from rollouts, where the part
# of the gradient that does not pass through the policy is a decay of x.


def solved(maker, loss, table, x):
    how = bx.SID(bx.FixedPoint(80), bx.NormalEquations(tol=1e-10))
    problem = bx.Problem(maker, loss)
    return bx.hypergradient(problem, how, np.zeros(table.rows, x.dtype), x, table, table, key=KEY, report=False)


class Sampled:
    """A process seen through rollouts alone; x and its table in float32."""

    def __init__(self, maker, loss, table, decide, number, samples=64):
        self.problem = bx.Problem(lambda w, lam, batch: w, loss)
        self.score = bx.ScoreFunction(bx.Given(), samples, Rollouts(maker, table, decide, number))
        self.table, self.places = table, dict.fromkeys("as", np.zeros(number, np.float32))

    def args(self, x):
        """w0, lam and both sources."""
        return np.float32(0.0), self.places | {"score": 0 * x, "x": x}, self.table, self.table

    def farthest(self, x, truth, estimates):
        """Of the mean of so many, in standard errors: the distance from the truth, and its size; largest entries."""

        def one(key):
            return bx.hypergradient(self.problem, self.score, *self.args(x), key=key, report=False).value["x"]

        found = jax.jit(partial(jax.lax.map, one))(jax.random.split(KEY, estimates))
        error = found.std(0) / estimates**0.5
        return jnp.max(jnp.abs(found.mean(0) - truth) / error), jnp.max(jnp.abs(truth) / error)

    def descended(self, x, decay, step, steps):
        """x after so many steps along estimates, and of its decay."""
        method = bx.BSGM(self.score, optax.chain(optax.add_decayed_weights(decay), step))
        return bx.minimize(self.problem, method, *self.args(x), steps=steps, key=KEY)


def descended(maker, loss, table, x, method, steps):
    problem, V = bx.Problem(maker, loss), np.zeros(table.rows, x.dtype)
    return bx.minimize(problem, method, V, x, table, table, steps=steps, key=KEY)


def on_the_random_process(axis, steps, estimates):
    rows, x = random_process()
    single = bx.Arrays(jax.tree.map(np.float32, rows))
    with jax.enable_x64(True):
        table = bx.Arrays(rows)
        one_move = bx.SID(bx.FixedPoint(10), bx.NormalEquations(max_steps=1, step_size=0.5))
        method = bx.BSGM(one_move, bx.optim("sgd", 8e-3), warm_start=True)
        found = descended(RANDOM, random_loss, table, x, method, steps)
        first, last = (np.asarray(solved(RANDOM, random_loss, table, at).value) for at in (x, found.lam))
    axis.semilogy(found.history.step, found.history.gradient_norm)
    axis.set(xlabel="outer steps", ylabel="norm of the hypergradient", title="random process")
    sampled = Sampled(RANDOM, same_action, single, two_in_one_state, 2)
    # of the part that passes through the policy
    off, size = sampled.farthest(np.float32(x), np.float32(first - x), estimates)
    norms = {"hypergradient_at_first": np.linalg.norm(first), "hypergradient_at_last": np.linalg.norm(last)}
    return norms | {"standard_errors_off": off, "standard_errors_of_the_truth": size}


def from_rollouts(steps):
    rows, x = jax.tree.map(np.float32, random_process())
    sampled = Sampled(RANDOM, same_action, bx.Arrays(rows), two_in_one_state, 2)
    found = sampled.descended(x, 1.0, optax.sgd(0.03), steps)
    end = solved(RANDOM, random_loss, bx.Arrays(rows), found.lam["x"]).value
    return {"hypergradient_from_rollouts_at_last": np.linalg.norm(end)}


def on_the_lake(axis, steps, sampled_steps, estimates):
    rows, x = jax.tree.map(np.float32, lake())
    table = bx.Arrays(rows)
    exact = bx.BSGM(bx.SID(bx.FixedPoint(60), bx.NormalEquations(tol=1e-4)), bx.optim("adam", 0.03), warm_start=True)
    found = descended(AGENT, lake_loss, table, x, exact, steps)
    sampled = Sampled(AGENT, not_at_the_goal, table, course, MOVES + 1)
    rollouts = sampled.descended(x, MU, optax.adam(0.03), sampled_steps)
    at = {"paid_at_the_goal": x, "designed": found.lam, "designed_from_rollouts": rollouts.lam["x"]}
    values = {name: solved(AGENT, lake_loss, table, y).outer_value for name, y in at.items()}
    middle = 0.3 * found.lam
    truth = solved(AGENT, lake_loss, table, middle).value - MU * middle
    axis.imshow(found.lam.reshape(len(LAKE), -1), cmap="coolwarm")
    for s, tile in enumerate("".join(LAKE)):
        axis.text(*divmod(s, len(LAKE))[::-1], tile, ha="center", va="center")
    axis.set(xticks=[], yticks=[], title="payments on the lake")
    chances = {f"chance_{name}": 0.5 * MU * float(at[name] @ at[name]) - value for name, value in values.items()}
    off, size = sampled.farthest(middle, truth, estimates)
    return chances | {"standard_errors_off_on_the_lake": off, "standard_errors_of_the_truth_on_the_lake": size}


# %%
# In a hurry, the random process alone.


def main(quick=False):
    axes = plt.subplots(1, 1 if quick else 2, figsize=(8, 3), layout="constrained", squeeze=False)[1][0]
    if quick:
        figures = on_the_random_process(axes[0], 300, 200)
    else:
        figures = on_the_random_process(axes[0], 3000, 2000) | from_rollouts(600) | on_the_lake(axes[1], 200, 400, 2000)
    return {name: float(f"{float(figure):.4g}") for name, figure in figures.items()}


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<40}{figure}")
    plt.show()
