"""W1's deterministic hypergradient by torchopt, in an environment with torch, torchopt, numpy and scipy.

Called by rivals.py: ``python rival_torch.py DATA.npz '{"tolerances": [...], "steps": 500}'``; prints one line of JSON.
torchopt has no L-BFGS, so scipy's does the inner problem; what is torchopt's is the implicit differentiation.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import scipy.optimize
import torch
import torchopt


def inner(w: torch.Tensor, lam: torch.Tensor, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(X @ w.T, y) + 0.5 * torch.sum(torch.exp(lam) * w**2)


def hypergradient(data: dict[str, Any], tol: float, steps: int) -> np.ndarray:
    X, Xv, lam = (torch.from_numpy(data[name]) for name in ("X", "Xv", "lam"))
    y, yv = (torch.from_numpy(data[name]).long() for name in ("y", "yv"))
    shape = (int(data["classes"]), X.shape[1])
    lam.requires_grad_(True)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat.astype(np.float32).reshape(shape)).requires_grad_(True)
        with torch.enable_grad():
            value = inner(w, lam.detach(), X, y)
            gradient = torch.autograd.grad(value, w)[0]
        return float(value), gradient.numpy().astype(np.float64).ravel()

    @torchopt.diff.implicit.custom_root(
        torch.func.grad(inner, argnums=0), argnums=1, solve=torchopt.linear_solve.solve_cg(rtol=tol, maxiter=1000)
    )
    def solve(w: torch.Tensor, lam: torch.Tensor, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        options = {"maxiter": steps, "gtol": tol / 10, "ftol": 0.0}
        found = scipy.optimize.minimize(
            value_and_gradient, w.numpy().ravel(), jac=True, method="L-BFGS-B", options=options
        )
        return torch.from_numpy(found.x.astype(np.float32).reshape(shape))

    w = solve(torch.zeros(shape), lam, X, y)
    return torch.autograd.grad(torch.nn.functional.cross_entropy(Xv @ w.T, yv), lam)[0].numpy()


def main() -> None:
    torch.set_num_threads(1)
    data, options = dict(np.load(sys.argv[1])), json.loads(sys.argv[2])
    out = []
    for tol in options["tolerances"]:
        cpu, wall = [], []
        for _ in range(3):
            clocks = time.process_time(), time.perf_counter()
            value = hypergradient(data, tol, options["steps"])
            cpu.append(1e3 * (time.process_time() - clocks[0]))
            wall.append(1e3 * (time.perf_counter() - clocks[1]))
        row = {"tol": tol, "cpu_ms": float(np.median(cpu)), "wall_ms": float(np.median(wall))}
        out.append(row | {"value": value.astype(float).tolist()})
    print(json.dumps(out))


if __name__ == "__main__":
    main()
