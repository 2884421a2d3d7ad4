"""An inner problem with many solutions: where unrolling, descent of both losses, and a penalty end.

Nothing but the outer loss E says what the second entry of w should be:

    minimise over lam, w   E(w, lam) = (lam - w_2)^2 / 2 + (w_1 - 1)^2 / 2,       w in argmin G(., lam),
    G(w, lam) = w_1^2 / 2 - lam w_1

The inner solutions are (lam, anything), the best of them (lam, lam), and so lam = 1. Plain unrolling (``ITD``) leaves
w_2 where it began, at 0, however many steps it makes, and ends where lam^2 / 2 + (lam - 1)^2 / 2 is least, at 1/2.
Descending E too, ever less (bi-level descent aggregation, ``outer_weight``), it comes near 1 as its steps grow in
number; a penalty, E + c (G - min G) with c = 100 and 200 and what they promise of c without end, is there at once.

After 40 outer steps: .5000 by unrolling 16, 64 and 256 steps; .978, .995 and .999 by descent of both; 1.0000 by the
penalty.

References: Liu, Mu, Yuan, Zeng, Zhang (2020), arXiv:2006.04045, whose counterexample this is; Liu, Gao, Zhang, Meng,
Lin (2022), arXiv:2101.11517, a survey of what is done about it; Kwon, Kwon, Wright, Nowak (2023), arXiv:2301.10945, for
the penalty.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import bilevax as bx

MU = 0.5


# %%
# Two losses without data.


def inner_loss(w, lam, batch):
    return 0.5 * w[0] ** 2 - lam * w[0]


def outer_loss(w, lam, batch):
    return 0.5 * (lam - w[1]) ** 2 + 0.5 * (w[0] - 1.0) ** 2


problem = bx.Problem(bx.GradientStep(inner_loss, step_size=1.0), outer_loss)
rows, w0, lam = bx.Arrays(np.zeros(1, np.float32)), np.zeros(2), np.float64(3.0)


# %%
# Each estimator under the same outer steps.


def methods(quick):
    for steps in (16,) if quick else (16, 64, 256):
        yield f"unrolled_{steps}", bx.ITD(steps, 1.0 - MU)
        yield f"aggregated_{steps}", bx.ITD(steps, 1.0 - MU, outer_weight=bx.Harmonic(MU, 1.0))
    yield "penalty", bx.Penalty(bx.LBFGS(tol=1e-9), multiplier=100.0, unit=1.0)


def main(quick=False):
    axis, ends, key = plt.subplots(figsize=(6, 3), layout="constrained")[1], {}, jax.random.key(0)
    with jax.enable_x64(True):
        for name, estimator in methods(quick):
            path, bsgm = [3.0], bx.BSGM(estimator, bx.optim("sgd", learning_rate=0.5), confirm=False)
            look = {"callback": lambda run, path=path: path.append(float(run.lam)), "every": 1}
            result = bx.minimize(problem, bsgm, w0, lam, rows, rows, steps=40, key=key, **look)
            ends[name] = float(result.lam)
            axis.plot(path, label=name.replace("_", ", "))
    axis.set(xlabel="outer steps", ylabel="lam", ylim=(0.0, 1.6))
    axis.legend(fontsize="small", ncols=2)
    return {f"lam_{name}": round(x, 4) for name, x in ends.items()}


if __name__ == "__main__":
    for name, figure in main().items():
        print(f"{name:<32}{figure}")
    plt.show()
