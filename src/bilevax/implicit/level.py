"""Whether a transformation of JAX is under way."""

import functools
from concurrent.futures import ThreadPoolExecutor

from jax.extend.core import get_opaque_trace_state


def top_level() -> bool:
    """True if no transformation is under way in this thread, so that nothing can be differentiated."""
    return bool(get_opaque_trace_state(convention="bilevax") == _top_level())


@functools.cache
def _top_level() -> object:
    """The state of a thread that has done nothing: this one may be within a trace at the first call."""
    # transformations are of a thread: another one is under none
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(get_opaque_trace_state, convention="bilevax").result()
