"""Sparse regression: the derivative of an elastic net, which knows only the features that are left.

The inner problem has a kink, and a penalty of absolute values for all features or for each one, j:

    minimise over lam   E(w(lam)) = mean_val (x'w - y)^2 / 2,
    w(lam) = argmin_w mean_train (x'w - y)^2 / 2 + sum_j exp(a_j) |w_j| + exp(b) |w|^2 / 2,       lam = (a, b)

The inner map is a proximal step, soft thresholding; its derivative is 0 where it returns 0, so that the linear system
lives on the support S of w, and dE / da_j is 0 for a feature that is out. With one a for all it is the known formula

    dE / da = -exp(a) sign(w_S)' H^-1 g,   dE / db = -exp(b) w_S' H^-1 g,   H = X_S'X_S / n + exp(b) I,  g = grad_S E

``main`` compares it with that, and with central differences of scikit-learn's ``ElasticNet``, on the diabetes data at
a third, a tenth and a thirtieth of the penalty that leaves nothing, in float64. Then both penalties of a design with
more features than rows are tuned, and a grid of a hundred pairs is looked at for comparison.

The largest difference from the formula is 9e-15, from differences 5e-10; the entries of features that are out are 0
exactly. With one seed, of 300 features and 150 rows, a validation loss of .1927 after 13 solves, beside .1934 of the
best pair of a hundred.

References: Bertrand, Klopfenstein, Massias, Blondel, Vaiter, Gramfort, Salmon (2022), arXiv:2105.01637, and before it
arXiv:2002.08943; Zou, Hastie (2005), for the elastic net.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet

import bilevax as bx

SOLVED = bx.SID(inner=bx.CoordinateDescent(tol=1e-10), linear=bx.GMRES(tol=1e-10))


# %%
# Squares, and the proximal step of both penalties.


def squares(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def shrunk(w, lam, s):
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam["a"]), 0.0) / (1.0 + s * jnp.exp(lam["b"]))


problem = bx.Problem(bx.ProximalStep(squares, shrunk), squares)


def fitted(a, b, rows):
    x, y = rows.data
    total = np.exp(a) + np.exp(b)
    net = ElasticNet(total, l1_ratio=np.exp(a) / total, fit_intercept=False, tol=1e-12, max_iter=100_000)
    return net.fit(x, y).coef_


def value_at(w, rows):
    x, y = rows.data
    return 0.5 * np.mean((x @ w - y) ** 2)


# %%
# Three derivatives in a and b: by the library, by the formula, by differences.


def derivatives(a, b, train, val, key):
    (x, y), (xv, yv) = train.data, val.data
    lam = {"a": np.full(x.shape[1], a), "b": np.float64(b)}
    est = bx.hypergradient(problem, SOLVED, np.zeros(x.shape[1]), lam, train, val, key=key, report=False)
    assert est.code == bx.Code.OK, est.message

    w, h = fitted(a, b, train), 1e-4
    S = w != 0
    H = x[:, S].T @ x[:, S] / len(y) + np.exp(b) * np.eye(S.sum())
    v = np.linalg.solve(H, xv[:, S].T @ (xv @ w - yv) / len(yv))
    formula = -np.exp(a) * np.sign(w[S]) @ v, -np.exp(b) * w[S] @ v
    ends = [[value_at(fitted(a + i * s, b + j * s, train), val) for s in (h, -h)] for i, j in ((1, 0), (0, 1))]
    differences = [(up - down) / (2 * h) for up, down in ends]
    out = np.abs(np.asarray(est.value["a"])[~S])
    return (float(np.sum(est.value["a"])), float(est.value["b"])), formula, differences, out.max(initial=0.0)


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] - x.mean(0)) / x.std(0), (y[order] - y.mean()) / y.std()
    return bx.Arrays((x[:221], y[:221])), bx.Arrays((x[221:], y[221:]))


# %%
# More features than rows, of which neighbours are correlated and ten groups of three count.


def design(features, seed=0):
    rng, rows = np.random.default_rng(seed), features // 2
    x = rng.normal(size=(2 * rows, features))
    x = x + 2.0 * np.repeat(rng.normal(size=(2 * rows, features // 3 + 1)), 3, axis=1)[:, :features]
    w = np.where(np.arange(features) < 30, 1.0, 0.0)
    y = x @ w + 10.0 * rng.normal(size=2 * rows)
    return [bx.Arrays((x[at] / x.std(0), y[at] / y.std())) for at in (slice(rows), slice(rows, None))]


def largest(rows):
    x, y = rows.data
    return np.log(np.abs(x.T @ y).max() / len(y))


# %%
# Tuning: scipy's L-BFGS, which is given value and hypergradient; and the grid.


def tuned(start, train, val, key, most):
    w0, path = np.zeros(train.data[0].shape[1]), [start]

    def value_and_gradient(point):
        lam = {"a": np.full_like(w0, point[0]), "b": point[1]}
        value, gradient = bx.value_and_hypergradient(problem, SOLVED, w0, lam, train, val, key=key)
        return float(value), np.array([np.sum(gradient["a"]), gradient["b"]])

    options, look = {"maxfun": most, "ftol": 1e-5}, lambda point: path.append(point.copy())
    return minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", callback=look, options=options), path


def main(quick=False):
    (most, number), key = (8, 4) if quick else (30, 10), jax.random.key(0)
    with jax.enable_x64(True):
        train, val = diabetes()
        top = largest(train)
        found = [derivatives(top - np.log(part), np.log(0.1), train, val, key) for part in (3, 10, 30)]
        value, formula, differences, out = (np.array(column) for column in zip(*found, strict=True))

        train, val = (train, val) if quick else design(300)
        top = largest(train)
        start = np.array([top - np.log(2), 0.0])
        best, path = tuned(start, train, val, key, most)
        grid_a, grid_b = np.linspace(top - 5.0, top, number), np.linspace(-6.0, 2.0, number)
        grid = np.array([[value_at(fitted(a, b, train), val) for b in grid_b] for a in grid_a])
        picture(grid_a, grid_b, grid, path)
        figures = {
            "difference_from_formula": np.max(np.abs(value - formula)),
            "difference_from_differences": np.max(np.abs(value - differences)),
            "largest_off_the_support": np.max(out),
            "loss_start": value_at(fitted(*start, train), val),
            "loss_tuned": value_at(fitted(*best.x, train), val),
            "loss_grid": grid.min(),
            "solves_tuned": best.nfev,
            "solves_grid": grid.size,
            "features_left": np.sum(fitted(*best.x, train) != 0),
        }
    return {name: float(f"{float(x):.4g}") for name, x in figures.items()}


# %%
# The loss of validation rows over both penalties, and the way down.


def picture(a, b, grid, path):
    axis = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    lines = axis.contourf(b, a, grid, 20, cmap="viridis")
    plt.colorbar(lines, label="validation loss")
    axis.plot(*np.transpose(path)[::-1], "w.-")
    axis.set(xlabel="b, of squares", ylabel="a, of absolute values")


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
