"""What is the package made of: its size by room, its functions and parameters, and how far does a value travel?

Prints a table of PATH/src/bilevax (``--root PATH``; default: this checkout), beside those that ``--against`` names.
With ``--quick`` types and trips are left out. Rooms are the folders of the package. What is counted:

- code lines: no blanks, comments, docstrings or other strings that are statements;
- functions: every ``def``, nested ones too, from there to its last line; parameters: of any kind, but for self and cls;
- the clump: two or more of problem, lam, train, val, sources in one signature; tuples: parameters annotated
  ``tuple[...]``;
- lines whose code names ``Any``, imports too; reads of every row: lines whose code reads an attribute ``full`` (not
  that of numpy) or ``all_rows``;
- comments: lines with nothing else on them; silencers are none;
- types: errors of ``mypy --strict``, with the settings of PATH.

Trips: frames of the package on Python's stack while one ``bx.hypergradient`` (SID, both solvers on
minibatches) is traced. *At the loss*: where the user's inner loss is first called inside a loop of JAX, which is the
first trace of a step in w; *deepest*: over all traces of both losses. *At a step size*: where an object of the user's
own, given as the step size, is first called inside such a loop. *That name lam*: those of the first that have an array
of lam's shape (none else has it) among their arguments, variables and closure; *that hold* a value: the same, or packed
at most two deep in tuples, lists, dicts and dataclasses.
"""

import argparse
import ast
import dataclasses
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median_low
from typing import Any

from benchmarks import machine, store, tables

CLUMP = {"problem", "lam", "train", "val", "sources"}
SILENCERS = {"type: ignore, noqa": r"#\s*(type:\s*ignore|noqa)", "fmt: skip": r"#\s*fmt:\s*(skip|off)"}
LOOPS = {"while_loop", "fori_loop", "scan"}
SPACE = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT}

Figures = dict[str, Any]
Test = Callable[[Any], bool]


def size(text: str, tree: ast.Module) -> Counter[str]:
    """Counts of one module that are sums over its lines."""
    code, named, out = set(), set(), Counter(lines=len(text.splitlines()))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SPACE:
            code.update(range(token.start[0], token.end[0] + 1))
        if token.type == tokenize.NAME and token.string == "Any":
            named.add(token.start[0])
        if token.type == tokenize.COMMENT:
            silent = [name for name, pattern in SILENCERS.items() if re.search(pattern, token.string)]
            out.update(silent)
            out["comments"] += not silent and token.line.lstrip().startswith("#")
    reads = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.Attribute) and node.attr in ("full", "all_rows"):
            reads |= set() if ast.unparse(node.value) in ("np", "jnp") else {node.end_lineno}
    return out + Counter(code=len(code), any=len(named), reads=len(reads))


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    a = function.args
    each = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [p for p in each if p is not None and p.arg not in ("self", "cls")]


def is_tuple(parameter: ast.arg) -> bool:
    return parameter.annotation is not None and ast.unparse(parameter.annotation).startswith("tuple[")


def spread(name: str, numbers: list[int]) -> Figures:
    ordered = sorted(numbers)
    p95 = ordered[int(0.95 * len(ordered))]
    return {f"{name}, median": median_low(ordered), f"{name}, p95": p95, f"{name}, max": ordered[-1]}


def written(package: Path) -> Figures:
    """What is read off the sources."""
    rooms: dict[str, Counter[str]] = {}
    functions = []
    for file in sorted(package.rglob("*.py")):
        text, inside = file.read_text(encoding="utf-8"), file.relative_to(package).parts
        tree, room = ast.parse(text), inside[0] if len(inside) > 1 else "(none)"
        rooms[room] = rooms.get(room, Counter()) + size(text, tree) + Counter(files=1)
        functions += [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    all_of = sum(rooms.values(), Counter())
    signatures = [parameters(f) for f in functions]
    return {
        **{f"room {room}, lines and code": [rooms[room]["lines"], rooms[room]["code"]] for room in sorted(rooms)},
        "files": all_of["files"], "lines": all_of["lines"], "code lines": all_of["code"],
        "functions": len(functions), **spread("lines of a function", [f.end_lineno - f.lineno + 1 for f in functions]),
        **spread("parameters", [len(s) for s in signatures]),
        "signatures of more than 8 parameters": sum(len(s) > 8 for s in signatures),
        "signatures with the clump": sum(len(CLUMP & {p.arg for p in s}) > 1 for s in signatures),
        "parameters that are tuples": sum(is_tuple(p) for s in signatures for p in s),
        "lines with Any": all_of["any"], "reads of every row": all_of["reads"],
        **{f"silencers, {name}": all_of[name] for name in SILENCERS},
        "comments": all_of["comments"], "comments, % of lines": round(100 * all_of["comments"] / all_of["lines"], 2),
    }  # fmt: skip


def type_errors(root: Path) -> int:
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={os.devnull}", "src/bilevax"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    found = re.search(r"Found (\d+) error", done.stdout)
    if not (found or done.stdout.startswith("Success")):
        raise RuntimeError(f"mypy failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return int(found[1]) if found else 0


def holds(value: Any, wanted: Test, deep: int) -> bool:
    """Whether it is wanted, or has such a one packed at most ``deep`` deep."""
    parts: Any = value if isinstance(value, tuple | list) else ()
    if isinstance(value, dict):
        parts = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return wanted(value) or (deep > 0 and any(holds(part, wanted, deep - 1) for part in parts))


def stack(package: Path, wanted: Test) -> dict[str, Any]:
    """The functions of the package that are being called, outermost first; those that name and hold what is wanted."""
    frames, frame, inside = [], sys._getframe(1), str(package) + os.sep
    while frame is not None:
        frames.insert(0, (frame, frame.f_code))
        frame = frame.f_back
    in_loop = any(code.co_name in LOOPS and f"{os.sep}jax{os.sep}" in code.co_filename for _, code in frames)
    own = [
        (f"{code.co_filename.removeprefix(inside)}:{code.co_qualname}", list(frame.f_locals.values()))
        for frame, code in frames
        if code.co_filename.startswith(inside)
    ]
    name, hold = ([f for f, held in own if any(holds(x, wanted, deep) for x in held)] for deep in (0, 2))
    return {"in loop": in_loop, "frames": [f for f, _ in own], "name": name, "hold": hold}


def trips(package: Path) -> tuple[Figures, dict[str, Any]]:
    """The frames of one call, counted and by name."""
    sys.path.insert(0, str(package.parent))
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bilevax as bx

    if Path(bx.__file__).resolve().parent != package:
        raise RuntimeError(f"bilevax comes from {bx.__file__}, not from {package}")
    lam, losses, steps = np.zeros(7, np.float32), [], []

    def is_lam(x: Any) -> bool:
        return getattr(x, "shape", None) == lam.shape

    def inner(w: Any, lam: Any, batch: Any) -> Any:
        losses.append(stack(package, is_lam) | {"inner": True})
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) + jnp.mean(jnp.exp(lam)) * jnp.sum(w**2)

    def outer(w: Any, lam: Any, batch: Any) -> Any:
        losses.append(stack(package, is_lam) | {"inner": False})
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    class Falling:
        def __call__(self, j: Any) -> Any:
            steps.append(stack(package, lambda x: isinstance(x, Falling)))
            return 1.0 / (2.0 + j.astype(jnp.float32))

    rows = np.random.default_rng(0).normal(size=(2, 64, 6)).astype(np.float32)
    train, val = (bx.Arrays((each[:, :5], each[:, 5]), batch_size=8) for each in rows)
    estimator = bx.SID(bx.FixedPoint(50, Falling()), bx.FixedPoint(50, Falling()), cross_batches=10)
    problem = bx.Problem(bx.GradientStep(inner, 0.1), outer)
    steps.clear()  # what the constructors called
    bx.hypergradient(problem, estimator, np.zeros(5, np.float32), lam, train, val, key=jax.random.key(0))

    loss = next(s for s in losses if s["inner"] and s["in loop"])
    step = next(s for s in steps if s["in loop"])
    deepest = max(losses, key=lambda s: len(s["frames"]))
    figures = {
        "frames at the loss": len(loss["frames"]), "frames that name lam": len(loss["name"]),
        "frames that hold lam": len(loss["hold"]), "frames at the loss, deepest": len(deepest["frames"]),
        "frames at a step size": len(step["frames"]), "frames that hold the step size": len(step["hold"]),
        "traces of the losses": len(losses),
    }  # fmt: skip
    return figures, {"loss": loss, "deepest": deepest, "step size": step, "all": [len(s["frames"]) for s in losses]}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=machine.ROOT, metavar="PATH", help="the checkout to look at")
    parser.add_argument("--against", type=Path, metavar="FILE", help="figures that were kept, to print beside these")


def main(options: argparse.Namespace) -> None:
    root = options.root.resolve()
    now: dict[str, Any] = {
        "commit": machine.commit(root, described=True), "figures": written(root / "src" / "bilevax"),
    }  # fmt: skip
    if not options.quick:
        now["figures"]["errors of mypy --strict"] = type_errors(root)
        figures, now["stacks"] = trips(root / "src" / "bilevax")
        now["figures"] |= figures
    columns = {"before": store.read(options.against), "after": now} if options.against else {"now": now}
    names = dict.fromkeys(name for each in columns.values() for name in each["figures"])
    table = tables.Table("figure", *(f"{when} ({each['commit']})" for when, each in columns.items()))
    for name in sorted(names, key=lambda name: not name.startswith("room ")):
        table(name, *(each["figures"].get(name) for each in columns.values()))
    store.keep(options, now)
