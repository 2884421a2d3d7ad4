"""Does the batch reach each function, and w the outer loss? Are rows of train among those of val?"""

import math
from collections.abc import Iterator

import jax
import numpy as np

from bilevax.audit.checks.program import held_by, plain, reached, trace
from bilevax.audit.findings import Finding
from bilevax.audit.oracles import flat
from bilevax.audit.subject import AuditedProblem, leaf_names, other_rows
from bilevax.core.trees import PyTree

BY_CHANCE = 1e-4
"""Probability that a random split shares so many rows, below which they are said to be shared."""

SOME = 4
"""Different rows that an array must have before it is compared with those of a source."""


def check_reach(s: AuditedProblem) -> Iterator[Finding]:
    """BATCH_UNREAD, SHARED_ROWS."""
    read = True
    for name in ("inner_map", "outer_loss"):
        if not reached(name, "batch", s):
            read = False
            yield _unread(name, s)
    if read:
        yield from _shared(**s.tables)


def check_outer(s: AuditedProblem) -> Iterator[Finding]:
    """W_WITHOUT_EFFECT: grad_1 E is exactly zero at three points, on the rows of val and on others."""
    points = s.w0, s.solution, s.perturbed
    if any(_slopes(s, w) for w in points):
        return
    others = other_rows(s.tables["val"], s.rng(16))
    if any(_slopes(s, w, others) for w in points):
        return
    if reached("outer_loss", "w", s):
        seen = "The outer loss uses w, but its derivative in w is exactly zero"
        advice = (
            "Take stop_gradient off w in the outer loss; in place of an argmax, a comparison or rounding, such as an "
            "accuracy, take a loss with a slope: cross-entropy, or the squared error of a score."
        )
    else:
        seen = "The outer loss does not use w"
        advice = "Let it judge its first argument, w: the loss of w's predictions on the rows of the batch."
    yield Finding(
        "W_WITHOUT_EFFECT", "error", f"{seen}: nothing of the inner solution reaches the hypergradient.", advice
    )


def _slopes(s: AuditedProblem, w: PyTree, rows: PyTree = None) -> bool:
    return bool(np.any(flat(s.outer(w, s.lam, rows)[1]) != 0))


def _unread(name: str, s: AuditedProblem) -> Finding:
    """What a function that does not read its batch holds in its place."""
    own, other = ("train", "val") if name == "inner_map" else ("val", "train")
    # the usual mistake: data closed over, of the other side even
    held = _rows_held(name, s)
    seen = f"{name} does not read its batch"
    function = "inner_loss" if s.problem.has_loss and own == "train" else name
    read = f"Read the rows from the third argument, def {function}(w, lam, batch): X, y = batch, which come from "
    if held == other:
        seen += f": it closes over rows of {other} in place of those of {own}."
        return Finding("BATCH_UNREAD", "error", seen, f"{read}{own}.")
    if held == own:
        seen += f": it closes over the rows of {own}, every one at each step."
        return Finding("BATCH_UNREAD", "warning", seen, f"{read}{own}, a minibatch at a time.")
    seen += f": no row of {own} changes it."
    advice = f"Right for a function of w and lam alone, such as a norm. Else: {read[0].lower()}{read[1:]}{own}."
    return Finding("BATCH_UNREAD", "note", seen, advice)


def _rows_held(name: str, s: AuditedProblem) -> str | None:
    """The source whose rows a function holds as constants or fields: ``train``, ``val`` or None."""
    held = [plain(x) for x in (*held_by(trace(name, s)), *jax.tree.leaves(getattr(s.problem, name)))]
    tables = [set(_hashed([x])) for x in held if x.ndim > 0 and x.dtype != object]
    for source, rows in s.tables.items():
        leaves = [set(_hashed([plain(x)])) for x in jax.tree.leaves(rows)]
        if any(len(t) >= SOME and len(t & leaf) >= len(t) / 2 for t in tables for leaf in leaves):
            return source
    return None


def _shared(train: PyTree, val: PyTree) -> Iterator[Finding]:
    """Rows of val that are rows of train, where a random split would not have put them into both.

    Of N = n + m rows that are split at random, a row that is there twice comes into both with probability
    2 n m / (N (N - 1)): those that do are counted against all that are there twice.
    """
    first, second = _table(train), _table(val)
    common = [first[name] for name in first if name in second], [second[name] for name in first if name in second]
    if not common[0]:
        return
    # each distinct row, by its hash: how often it is in train and in val
    n, m = (leaves[0].shape[0] for leaves in common)
    values, places = np.unique(np.concatenate([_hashed(leaves) for leaves in common]), return_inverse=True)
    in_train, in_val = (np.bincount(x, minlength=values.size) for x in (places[:n], places[n:]))
    both, twice = int(in_val[in_train > 0].sum()), in_train + in_val == 2
    # of the rows that are there twice, those with one in train and one in val
    split, seen = int(np.sum(twice & (in_train == 1))), int(twice.sum())
    # P(at least so many of the rows that are there twice come into both)
    chance = _at_least(split, seen, 2 * n * m / ((n + m) * (n + m - 1)))
    same = values.size >= SOME and n == m and np.array_equal(in_train, in_val)
    unique = values.size >= SOME and in_train.max() == in_val.max() == 1  # no row repeats but from one to the other
    if same or chance < BY_CHANCE or (unique and both):
        what = "val and train are the same rows" if same else f"{both} of the {m} rows of val are rows of train, too"
        yield Finding(
            "SHARED_ROWS",
            "warning" if same or chance < BY_CHANCE else "note",
            f"{what}: what tunes lam is then, in part, the error on the rows that w was fitted to, and penalties are "
            "driven to zero.",
            "Split the table once, before anything else, so that no row is in both: train = bx.Arrays((X[:n], y[:n])) "
            "and val = bx.Arrays((X[n:], y[n:])) after a shuffle. Right only where the outer loss is meant to be "
            "that of the training rows.",
        )


def _at_least(k: int, n: int, p: float) -> float:
    """P(a binomial of n draws is k or more)."""
    # log n! + n log(1 - p) - log i! - log (n - i)! + i log(p / (1 - p)), i = k, ..., n
    fixed, odds = math.lgamma(n + 1) + n * math.log1p(-p), math.log(p) - math.log1p(-p)
    logs = (fixed - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * odds for i in range(k, n + 1))
    return math.fsum(map(math.exp, logs))


def _table(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves with a row each, by name and kind, but for whole numbers that number the rows."""
    given = zip(leaf_names("", tree), jax.tree.leaves(tree), strict=True)
    leaves = {name.removeprefix(".rows"): plain(x) for name, x in given if x.ndim}  # without the key of a draw
    rows = min(x.shape[0] for x in leaves.values())
    named = {f"{name} {x.dtype}{x.shape[1:]}": x for name, x in leaves.items() if x.shape[0] == rows}
    # a column of numbers 0, 1, ... would make every row another one
    whole = {n for n, x in named.items() if x.dtype.kind in "iu" and np.unique(_hashed([x])).size == rows}
    return {n: x for n, x in named.items() if n not in whole}


def _hashed(leaves: list[np.ndarray]) -> np.ndarray:
    """A 64-bit number a row: its bytes times random odd numbers; [n]."""
    rng, total = np.random.default_rng(0), np.zeros(leaves[0].shape[0], np.uint64)
    for x in leaves:
        rows = np.ascontiguousarray(x.reshape(x.shape[0], -1)).view(np.uint8)
        words = np.zeros((rows.shape[0], -(-rows.shape[1] // 8) * 8), np.uint8)
        words[:, : rows.shape[1]] = rows
        # a multiply-xorshift bijection of each word, then a random linear form of odd coefficients, modulo 2^64
        mixed = words.view(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        total += mixed @ (rng.integers(1 << 63, size=mixed.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1))
    return total
