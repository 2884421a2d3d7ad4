"""docs/paper.md from the results: what the paper claims beside what was measured."""

from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.paper import bilevel

TITLES = {"synthetic": "Synthetic", "fashion": "Fashion-MNIST", "newsgroups": "20 Newsgroups"}
PARTS = ("errors", "bilevel")
SKIPPED = "bilevel", "synthetic"  # which there is not
KINDS = {"single": "single", "feature": "per feature"}

INTRODUCTION = """# The paper's experiments, run again

`make paper` repeats the two experiments of Grazzi, Pontil, Salzo, *Convergence Properties of Stochastic Hypergradients*
(2021, arXiv:2011.07122), draws the figures and writes this page from benchmarks/results/paper/.

What the paper says of them, as far as we have read it: its experiments are regularised logistic regression on MNIST and
multinomial tasks on MNIST and 20 Newsgroups; they are to support the theory and to show the advantage of stochastic
hypergradients, which can outperform deterministic ones in large-scale regimes. The numbers of its tables and figures
are not known to us, so none stands here beside ours. MNIST is in no package registry as a whole; Fashion-MNIST takes
its place.

The inner problem is (multinomial) logistic regression without intercept and with the penalties
1/2 sum_j exp(lam_j) |w_j|^2, one for each feature j, or a single one; the outer loss is the mean loss of the validation
rows. Synthetic: 5,000 rows each to train and to validate on, 50 columns of falling size, two classes, nearly separable
(SID's errors are several times larger where the labels are noisier). Fashion-MNIST: 30,000 rows each, 784 centred
pixels divided by one number, 10 classes. 20 Newsgroups: half of the 11,293 training documents each, tf-idf of 42,254
words, 20 classes.

## How wrong the hypergradient is

Squared relative error against epochs: an epoch visits every training row once for w and once for v. AID-FP iterates on
every row, AID-CG solves with L-BFGS and conjugate gradients on every row, SID takes minibatches. All but AID-CG use the
authors' steps: alpha = 2 / (L + 2 penalty), and constant steps 1 or decreasing ones beta / (beta + j) with
beta = 2 / (1 - q^2). The truth is L-BFGS and conjugate gradients to rounding in float64, in the same run. Mean of the
runs (a split and minibatches of its own each); bands hold the middle 80 % of them. L is the bound on the curvature that
holds at every w.
"""

OVERTAKEN = """
*Overtaken* is the first of the epochs measured at which the mean error of the deterministic method, interpolated to
that cost, is below that of SID with decreasing steps.
"""

TUNING = """
## Tuning the penalties

The same projected Adam on lam for three estimators of equal cost: {epochs} epochs an outer step, cold starts, no
warm-up and nothing tuned by hand; SID's steps fall from 1 to 1/5 over a chain. What is compared are the last penalties:
validation loss and test accuracy of the model trained to the end with them on the training rows. Mean of the runs, in
brackets the least and the largest.
"""


def text(found: dict[str, Any], figures: dict[str, str]) -> str:
    """The page."""
    measured, tuned = ({d: found[f"{part}-{d}"] for d in TITLES if f"{part}-{d}" in found} for part in PARTS)
    parts = [INTRODUCTION]
    for name, result in measured.items():
        parts += _section(name, figures[f"errors-{name}"]) + _errors(result)
    if measured:
        parts.append(OVERTAKEN)
    if "synthetic" in measured:
        parts += [*_equal_epochs(measured["synthetic"]), ""]
    if tuned:
        epochs = sorted({result["plan"]["epochs"] for result in tuned.values()})
        parts.append(TUNING.format(epochs=" or ".join(map(str, epochs))))
    for name, result in tuned.items():
        parts += _section(name, figures[f"bilevel-{name}"]) + _tuned(result)
    return "\n".join([*parts, *_run(found), ""])


def _section(name: str, figure: str) -> list[str]:
    return [f"### {TITLES[name]}\n", f"![{TITLES[name]}](paper/{figure})\n"]


def mean_error(curve: dict[str, Any], kind: str, epochs: float) -> float:
    """Mean error of the runs at so many epochs, interpolated in logarithms; the last one measured beyond."""
    spent = np.log([np.mean(runs) for runs in curve["epochs"]])
    means = np.log([np.mean(runs) + 1e-30 for runs in curve[kind]])
    return float(np.exp(np.interp(np.log(epochs), spent, means)))


def overtaken(curves: dict[str, Any], kind: str, rival: str, method: str) -> float | None:
    """The first of the method's epochs at which the rival's mean error is lower."""
    for runs in curves[method]["epochs"]:
        epochs = float(np.mean(runs))
        if mean_error(curves[rival], kind, epochs) < mean_error(curves[method], kind, epochs):
            return epochs
    return None


def _errors(result: dict[str, Any]) -> list[str]:
    """The table of one data set, and how often SID lost."""
    spent = next(iter(result["strengths"].values()))["curves"]["dec"]["epochs"]
    epochs = [round(float(np.mean(runs))) for runs in spent]
    at = 10 if 10 in epochs else epochs[-1]
    methods = {"batch": "AID-FP", "cg": "AID-CG", "const": "SID const.", "dec": "SID dec.", "dec shuffled": "shuffled"}
    head = ["penalty", "q", *(f"{short}, {at} epochs" for short in methods.values()),
            "overtaken by AID-FP at: i.i.d., shuffled", "by AID-CG"]  # fmt: skip
    rows, lost = [], dict.fromkeys(("batch", "cg"), 0)
    for kind, title in KINDS.items():
        for strength, one in result["strengths"].items():
            curves = one["curves"]
            cells = [f"{title}, {strength}", f"{one['q']:.4f}"]
            cells += [_short(mean_error(curves[m], kind, at)) for m in methods]
            for rival in lost:
                when = [overtaken(curves, kind, rival, method) for method in ("dec", "dec shuffled")]
                lost[rival] += when[0] is not None
                cells.append(", ".join("-" if e is None else f"{e:.0f}" for e in when))
            rows.append(cells)
    said = (
        f"\nSID with decreasing steps and i.i.d. rows is overtaken within {epochs[-1]} epochs by AID-FP in"
        f" {lost['batch']} of these {len(rows)} cases, by AID-CG with L-BFGS in {lost['cg']}. {result['runs']} runs,"
        f" batches of {result['shape']['batch']}.\n"
    )
    return [tables.text(head, rows), said]


def _equal_epochs(result: dict[str, Any]) -> list[str]:
    """What the theory expects of the synthetic problem at equal epochs."""
    rows = [row for order in ("", " shuffled") for row in _expectations(result["strengths"], order)]
    if not rows:
        return []
    title = "### At equal epochs, what the theory expects\n\nSynthetic problem, a penalty per feature.\n"
    return [title, tables.text(["penalty", "expected", "measured", "so"], rows)]


def _expectations(strengths: dict[str, Any], order: str) -> list[list[str]]:
    """Rows for one order of the rows; none where the strengths were not run."""
    if not {"0.001", "0.1"} <= strengths.keys():
        return []
    ill, well = (strengths[s]["curves"] for s in ("0.001", "0.1"))
    name = order.strip() or "i.i.d."

    def error(curves: dict[str, Any], method: str, epochs: int) -> float:
        return mean_error(curves[method], "feature", epochs)

    def row(what: str, expected: str, met: bool, *measured: float) -> list[str]:
        return [f"{what}, {name}", expected, ", ".join(map(_short, measured)), "yes" if met else "**no**"]

    dec, batch = error(ill, f"dec{order}", 10), error(ill, "batch", 10)
    out = [row(".001, 10 epochs", "SID < 1e-3, AID-FP > .3", dec < 1e-3 and batch > 0.3, dec, batch)]
    dec, batch = error(well, f"dec{order}", 20), error(well, "batch", 20)
    out.append(row(".1, 20 epochs", "SID > 1e-9 > AID-FP", batch < 1e-9 < dec, dec, batch))
    for strength, curves in ((".001", ill), (".1", well)):
        early, late = (error(curves, f"const{order}", epochs) for epochs in (10, 100))
        expected = "SID with constant steps at 10 and at 100 epochs, within a factor of 10"
        out.append(row(strength, expected, 0.1 < late / early < 10, early, late))
    return out


def _tuned(result: dict[str, Any]) -> list[str]:
    head = ["penalties", "estimator", "validation loss", "test accuracy", "seconds a run"]
    rows = []
    for per, runs in result["penalties"].items():
        rows.append([bilevel.PENALTIES[per], "the start", *_ends(runs["start"]), ""])
        for method, name in bilevel.METHODS.items():
            seconds = np.mean([one["seconds"] for one in runs[method]])
            rows.append([bilevel.PENALTIES[per], name, *_ends(runs[method]), f"{seconds:.0f}"])
    return [tables.text(head, rows), *_verdict(result)]


def _verdict(result: dict[str, Any]) -> list[str]:
    """Who has the lowest validation loss, said in a sentence for each kind of penalty."""
    out = []
    for per, runs in result["penalties"].items():
        loss = {m: np.mean([one["validation_loss"] for one in runs[m]]) for m in bilevel.METHODS}
        best = min(loss, key=lambda m: loss[m])
        gap = loss["stochastic"] - loss[best]
        lost = "" if best == "stochastic" else f"; SID is {gap:.4f} above it"
        out.append(f"With {bilevel.PENALTIES[per]} penalties {bilevel.METHODS[best]} ends lowest{lost}.")
    plan = result["plan"]
    return [
        "\n"
        + " ".join(out)
        + f" {plan['runs']} runs of {plan['steps']} outer steps, from a penalty of {plan['start']:g}.\n"
    ]


def _ends(runs: list[dict[str, float]]) -> list[str]:
    def cell(name: str, digits: int) -> str:
        values = [one[name] for one in runs]
        return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"

    return [cell("validation_loss", 4), cell("accuracy", 4)]


def _run(found: dict[str, Any]) -> list[str]:
    """Where and when it was measured."""
    if not found:
        return []
    setting = next(iter(found.values()))["setting"]
    minutes = ", ".join(f"{name} {result['seconds'] / 60:.0f} min" for name, result in found.items())
    versions = ", ".join(f"{k} {v}" for k, v in setting["versions"].items() if k in ("jax", "numpy", "scipy", "python"))
    there = f"## The run\n\n{minutes}; {setting['processor']}, {setting['cores']} cores; {versions}; {setting['date']}."
    missing = [f"{part}-{d}" for part in PARTS for d in TITLES if f"{part}-{d}" not in found and (part, d) != SKIPPED]
    return [there + f" Not run in full yet: {', '.join(missing)}." * bool(missing)]


def _short(x: float) -> str:
    return f"{x:.2g}" if x >= 1e-3 else f"{x:.0e}".replace("e-0", "e-")
