"""A recipe of ``examples/`` in quick mode, as its users have it, and what is asked of every one."""

import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt

EXAMPLES = Path(__file__).parents[1] / "examples"


def loaded(path):
    """The module in this file."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked(check):
    """The quick figures of the recipe that has the check's name, given to it.

    float32 and JAX's own rules, also where a recipe is imported; pictures on no screen.
    """
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(mpl.rc_context({"backend": "agg"}))
        plt.close("all")
        figures = loaded(EXAMPLES / f"{check.__name__}.py").main(quick=True)
        assert plt.get_fignums()
        plt.close("all")
    assert json.loads(json.dumps(figures)) == figures  # numbers alone, which are kept as they are
    check(figures)
