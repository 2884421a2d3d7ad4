"""Tolls: what to charge on a few roads so that selfish drivers waste less time, with a bound on either side.

Drivers choose among the paths of their pair of places by time and toll, with some noise: w is a logit equilibrium,

    minimise over tolls 0 <= x <= 30   F(w(x)) = sum over links of flow times travel time,
    w = softmax(-(times of the paths at w + tolls x on them) / T)         for each pair of places

Let h be one round of adjustment, a part of the way from w to the response to it. Two problems without a hierarchy
bracket this one. In the first (Cournot) the tolls are best for n rounds from where the drivers are, and the drivers are
at rest: ``BSGM`` of an ``ITD`` of n steps, warm; whatever tolls come of it, F at their equilibrium is no less than the
least. In the second (monopoly) tolls and the flows before the last n rounds are chosen together, ``Unrolled``: the true
equilibrium is one choice, so that the least F is no more. Descent finds a local minimum of it, begun at the equilibrium
of the best tolls known; that it is the least, nothing here proves.

Braess's network, with four vehicles in place of six, has a road that all of them take and few should: it is tolled, and
tolls can be tried on a grid. The Sioux Falls network has 76 links and 528 pairs of places; the four shortest paths of
each pair are open, and the twelve links are tolled where one more vehicle costs the others most.

With one seed, Braess: 325.144 without a toll; above 287.3900, 287.3886 and 287.3856 by 1, 4 and 16 rounds, as far as
Adam goes, since of a single toll one round tells the direction; 287.384629 at the best of the grid, below 287.384615 by
any number of rounds. Sioux Falls, in millions: 7.6968 without tolls; above 7.6706, 7.6617 and 7.6601 by 1, 8 and 32
rounds, below 7.4687, 7.5391 and 7.6402, so that the least F is known to .26 %.

References: Li, Yu, Liu, Nie, Wang (2023), arXiv:2302.09734, for both bounds; Braess (1968); LeBlanc, Morlok, Pierskalla
(1975) for Sioux Falls, with the links and trips that the package aequilibrae has of it, capacities to the vehicle.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.csgraph import yen

import bilevax as bx

KEY, LARGEST = jax.random.key(0), 30.0

# from, to, time when empty, capacity; both ways are alike
LINKS = """
1 2 6 25900; 1 3 4 23403; 2 6 5 4958; 3 4 4 17111; 3 12 4 23403; 4 5 2 17783; 4 11 6 4909; 5 6 4 4948; 5 9 5 10000; 6
8 2 4899; 7 8 3 7842; 7 18 2 23403; 8 9 10 5050; 8 16 5 5046; 9 10 3 13916; 10 11 5 10000; 10 15 6 13512; 10 16 4
4855; 10 17 8 4994; 11 12 6 4909; 11 14 4 4877; 12 13 3 25900; 13 24 4 5091; 14 15 5 5128; 14 23 4 4925; 15 19 3
14565; 15 22 3 9599; 16 17 2 5230; 16 18 3 19680; 17 19 2 4824; 18 20 4 23403; 19 20 4 5003; 20 21 6 5060; 20 22 5
5076; 21 22 2 5230; 21 24 3 4885; 22 23 4 5000; 23 24 2 5079
"""

# hundreds of vehicles from each place, to each
TRIPS = """
0 1 1 5 2 3 5 8 5 13 5 2 5 3 5 5 4 1 3 3 1 4 3 1
1 0 1 2 1 4 2 4 2 6 2 1 3 1 1 4 2 0 1 1 0 1 0 0
1 1 0 2 1 3 1 2 1 3 3 2 1 1 1 2 1 0 0 0 0 1 1 0
5 2 2 0 5 4 4 7 7 12 14 6 6 5 5 8 5 1 2 3 2 4 5 2
2 1 1 5 0 2 2 5 8 10 5 2 2 1 2 5 2 0 1 1 1 2 1 0
3 4 3 4 2 0 4 8 4 8 4 2 2 1 2 9 5 1 2 3 1 2 1 1
5 2 1 4 2 4 0 10 6 19 5 7 4 2 5 14 10 2 4 5 2 5 2 1
8 4 2 7 5 8 10 0 8 16 8 6 6 4 6 22 14 3 7 9 4 5 3 2
5 2 1 7 8 4 6 8 0 28 14 6 6 6 9 14 9 2 4 6 3 7 5 2
13 6 3 12 10 8 19 16 28 0 40 20 19 21 40 44 39 7 18 25 12 26 18 8
5 2 3 15 5 4 5 8 14 39 0 14 10 16 14 14 10 1 4 6 4 11 13 6
2 1 2 6 2 2 7 6 6 20 14 0 13 7 7 7 6 2 3 4 3 7 7 5
5 3 1 6 2 2 4 6 6 19 10 13 0 6 7 6 5 1 3 6 6 13 8 8
3 1 1 5 1 1 2 4 6 21 16 7 6 0 13 7 7 1 3 5 4 12 11 4
5 1 1 5 2 2 5 6 10 40 14 7 7 13 0 12 15 2 8 11 8 26 10 4
5 4 2 8 5 9 14 22 14 44 14 7 6 7 12 0 28 5 13 16 6 12 5 3
4 2 1 5 2 5 10 14 9 39 10 6 5 7 15 28 0 6 17 17 6 17 6 3
1 0 0 1 0 1 2 3 2 7 2 2 1 1 2 5 6 0 3 4 1 3 1 0
3 1 0 2 1 2 4 7 4 18 4 3 3 3 8 13 17 3 0 12 4 12 3 1
3 1 0 3 1 3 5 9 6 25 6 5 6 5 11 16 17 4 12 0 12 24 7 4
1 0 0 2 1 1 2 4 3 12 4 3 6 4 8 6 6 1 4 12 0 18 7 5
4 1 1 4 2 2 5 5 7 26 11 7 13 12 26 12 17 3 12 24 18 0 21 11
3 0 1 5 1 1 2 3 5 18 13 7 8 11 10 5 6 1 3 7 7 21 0 7
1 0 0 2 0 1 1 2 2 8 6 5 7 4 4 3 3 0 1 4 5 11 7 0
"""


# %%
# A network: for each pair of places, a row, the links of its paths [K, L] and its demand; the times of the links at
# given flows; which links are tolled; T, the part of the way that a round goes, and the unit of F.


class Network(NamedTuple):
    """A network, its drivers, and what may be tolled."""

    rows: dict
    times: object
    tolled: np.ndarray
    temperature: float
    pace: float
    unit: float = 1.0

    def flows(self, w, batch):
        """Of the links."""
        return jnp.einsum("p,pk,pkl->l", batch["demand"], w, batch["paths"])

    def cost(self, w, tolls, batch):
        """Of the paths, a row for each pair of places: times and tolls."""
        links = self.times(self.flows(w, batch)).at[self.tolled].add(tolls)
        return batch["paths"] @ links

    def round(self, w, tolls, batch):
        """A part of the way to the response."""
        return w + self.pace * (bx.LogitResponse(self.cost, self.temperature)(w, tolls, batch) - w)

    def total_time(self, w, tolls, batch):
        """F."""
        flows = self.flows(w, batch)
        return flows @ self.times(flows) / self.unit

    @property
    def evenly(self):
        """w that begins."""
        shape = self.rows["paths"].shape[:2]
        return np.full(shape, 1 / shape[1])


def braess():
    per_vehicle, empty = np.array([10.0, 1, 1, 10, 1]), np.array([0.0, 50, 50, 0, 10])
    paths = np.array([[[1.0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 1, 1]]])  # up, down, and over the fifth link
    rows = {"paths": paths, "demand": np.array([4.0])}
    return Network(rows, lambda flow: empty + per_vehicle * flow, np.array([4]), temperature=3.0, pace=0.1)


def sioux_falls(paths_a_pair=4, tolled=12):
    both = np.array([[float(x) for x in link.split()] for link in LINKS.split(";")])
    links = np.concatenate([both, both[:, [1, 0, 2, 3]]])
    ends, empty, capacity = links[:, :2].astype(int) - 1, links[:, 2], links[:, 3]
    trips = 100 * np.array([[float(x) for x in line.split()] for line in TRIPS.strip().splitlines()])
    graph, number = np.zeros(trips.shape), {tuple(pair): i for i, pair in enumerate(ends)}
    graph[tuple(ends.T)] = empty
    pairs = np.argwhere(trips > 0)
    paths = np.zeros((len(pairs), paths_a_pair, len(links)))
    for p, (start, end) in enumerate(pairs):
        before = yen(graph, start, end, paths_a_pair, return_predecessors=True)[1]
        for k, previous in enumerate(before):
            at = end
            while at != start:
                paths[p, k, number[previous[at], at]] = 1
                at = previous[at]

    def times(flow):
        return empty * (1 + 0.15 * (flow / capacity) ** 4)

    rows = {"paths": paths, "demand": trips[tuple(pairs.T)]}
    network = Network(rows, times, np.arange(tolled), temperature=1.0, pace=0.05, unit=1e6)
    flow = network.flows(equilibrium(network, np.zeros(tolled)).w, rows)
    worst = np.argsort(empty * 0.6 * flow * (flow / capacity) ** 4)[::-1]  # flow times the slope of the time
    return network._replace(tolled=np.sort(worst[:tolled]))


# %%
# Three descents: along the hypergradient at the equilibrium, and the two without a hierarchy.


def equilibrium(network, tolls):
    """F and its hypergradient at the equilibrium."""
    how = bx.SID(bx.FixedPoint(800, tol=1e-3), bx.GMRES(tol=1e-6))
    table, problem = bx.Arrays(network.rows), bx.Problem(network.round, network.total_time)
    return bx.hypergradient(problem, how, network.evenly, tolls, table, table, key=KEY, report=False)


def cournot(network, rounds, step, steps):
    """Tolls that are best for so many rounds from where the drivers rest."""
    problem = bx.Problem(network.round, network.total_time, project=bx.Box(0.0, LARGEST))
    method = bx.BSGM(bx.ITD(rounds, tol=np.inf), bx.optim("adam", step), warm_start=True)
    table, tolls = bx.Arrays(network.rows), np.zeros(len(network.tolled))
    return bx.minimize(problem, method, network.evenly, tolls, table, table, steps=steps, key=KEY)


def monopoly(network, rounds, tolls, w, step, steps):
    """The least F of so many rounds, with the flows before them as free as the tolls."""
    unrolled = bx.Unrolled(
        lambda w, lam, batch, t: network.round(w, lam["tolls"], batch),
        lambda lam, batch: jax.nn.softmax(lam["w"]),
        rounds,
    )
    bounds = bx.Box({"tolls": 0.0, "w": -np.inf}, {"tolls": LARGEST, "w": np.inf})
    problem = bx.Problem(unrolled, lambda w, lam, batch: network.total_time(w, lam["tolls"], batch), project=bounds)
    method, table = bx.BSGM(bx.ITD(1, tol=np.inf), bx.optim("adam", step)), bx.Arrays(network.rows)
    lam = {"tolls": tolls, "w": jnp.log(w)}
    return bx.minimize(problem, method, w, lam, table, table, steps=steps, key=KEY).history.outer_value.min()


def bracket(network, rounds, tolls_step, steps, monopoly_steps=150):
    """For each number of rounds F at the equilibrium of the tolls from below the hierarchy, and the lower bound."""
    upper, best = {0: equilibrium(network, np.zeros(len(network.tolled)))}, None
    lams = {n: cournot(network, n, tolls_step, steps).lam for n in rounds}
    upper |= {n: equilibrium(network, lam) for n, lam in lams.items()}
    best = min(lams, key=lambda n: upper[n].outer_value)
    lower = {n: monopoly(network, n, lams[best], upper[best].w, 0.2, monopoly_steps) for n in rounds}
    return {n: float(x.outer_value) for n, x in upper.items()}, {n: float(x) for n, x in lower.items()}, lams[best]


def on_the_grid(network, tolls):
    """The least F of all these tolls, of the one road."""
    return min(float(equilibrium(network, np.array([toll])).outer_value) for toll in tolls)


# %%
# In a hurry, Braess alone.


def main(quick=False):
    axes = plt.subplots(1, 1 if quick else 2, figsize=(8, 3), layout="constrained", squeeze=False)[1][0]
    with jax.enable_x64(True):
        network, rounds = braess(), (4,) if quick else (1, 4, 16)
        upper, lower, tolls = bracket(network, rounds, 0.3, 300)
        grid = on_the_grid(network, np.linspace(0, LARGEST, 11 if quick else 301))
        figures = {"braess_on_the_grid": grid, "braess_toll": float(tolls[0])} | shown(axes[0], "braess", upper, lower)
        axes[0].axhline(grid, color="gray", lw=0.8)
        if not quick:
            network = sioux_falls()
            upper, lower, tolls = bracket(network, (1, 8, 32), 0.1, 150)
            figures |= shown(axes[1], "sioux_falls", upper, lower) | {"sioux_falls_largest_toll": float(max(tolls))}
    return {name: float(f"{figure:.9g}") for name, figure in figures.items()}


# %%
# Both bounds, by the number of rounds.


def shown(axis, name, upper, lower):
    for bound, label in ((upper, "at the equilibrium of Cournot tolls"), (lower, "monopoly")):
        axis.plot(bound.keys(), bound.values(), "o-", label=label)
    axis.set(xscale="symlog", xlabel="rounds", ylabel="total time", title=name.replace("_", " "))
    axis.legend()
    return {f"{name}_{which}_{n}": x for which, b in (("above", upper), ("below", lower)) for n, x in b.items()}


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
