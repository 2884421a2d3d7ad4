"""Memory: what is left, and one sentence where that is too little.

What programs take, :mod:`bilevax.core.programs` says; what tuning takes, :mod:`bilevax.tables.memory`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bilevax.core.errors import ResourceError
from bilevax.core.host import noted

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MB = 1 << 20

CLEARLY = 1.25
"""An estimate is refused from so many times what is left; below that, and above what is left, it is a warning."""

HELPS = "fewer rows, smaller minibatches or float32 take less, and so does an algorithm that keeps no table"

LEAST = 48 * MB
"""What a program more takes to compile."""

_granted = [0.0, 0.0]
_PAGE = 4096 if resource is None else resource.getpagesize()


class Left(NamedTuple):
    """What a process may still take.

    Attributes:
        bytes: infinite where nothing is known.
        of: whose limit that is.
    """

    bytes: float
    of: str = ""


def left() -> tuple[Left, Left, Left]:
    """What the address space, the narrowest of the control groups, and the machine have left."""
    nothing = Left(float("inf"))
    return _address_space(), min(_control_groups(), key=lambda limit: limit.bytes, default=nothing), _machine()


def fits(need: float) -> bool:
    """Whether so many bytes are left."""
    return need <= min(limit.bytes for limit in left())


def require(need: float, what: str, helps: str = HELPS, *, compiler: float = 0.0, mapped: float = 0.0) -> None:
    """Say, before it is begun, that something takes more memory than there is.

    Args:
        need: an estimate in bytes, beside what is in use; on the high side.
        what: as the sentence begins, such as "tuning 1,000 rows".
        helps: what would take less.
        compiler: what it takes beside that to compile its programs. A process keeps it: what was granted before is not
            asked for again, but for LEAST.
        mapped: address space that is reserved beyond that, which only ``ulimit -v`` counts; likewise.

    Raises:
        ResourceError: it takes more address space, or clearly more memory, than there is; where it takes just about as
            much memory as there is, that is a warning.
    """
    kept = max(compiler - _granted[0], LEAST) if compiler else 0.0
    needs = need + kept + max(mapped - _granted[1], 0), need + kept, need + kept
    # where the address space ends the compiler aborts the process: no benefit of the doubt there
    bounds = 1.0, CLEARLY, CLEARLY
    # the one that is exceeded by the largest factor
    need, have, bound = max(zip(needs, left(), bounds, strict=True), key=lambda each: each[0] / max(each[1].bytes, 1.0))
    sentence = f"{what} takes about {size(need)} of memory, and {size(have.bytes)} {have.of}; {helps}"
    if need > bound * have.bytes:
        raise ResourceError(sentence)
    _granted[:] = max(_granted[0], compiler), max(_granted[1], mapped)
    if need > have.bytes:
        warnings.warn(f"memory may not be enough: {sentence}", stacklevel=3)


@contextmanager
def said(what: str, helps: str = HELPS) -> Iterator[None]:
    """Turns what is raised where memory ends, by Python, numpy, pyarrow or JAX, into a sentence; also a decorator.

    So with what a host callback of a compiled program raises: the sentence alone comes out.

    Args:
        what: was being done.
        helps: what would take less.

    Raises:
        ResourceError: memory ended.
    """
    try:
        yield
    except Exception as e:
        if (fault := noted(e)) is not None:
            raise fault from None
        if isinstance(e, ResourceError) or not exhausted(e):
            raise
        have = min(left(), key=lambda limit: limit.bytes)
        rest = f": {size(have.bytes)} {have.of}" if have.bytes < float("inf") else ""
        raise ResourceError(f"there is too little memory for {what}{_asked(e)}{rest}; {helps}") from e


def exhausted(e: BaseException) -> bool:
    """True of an exception that says that memory ended."""
    # JaxRuntimeError, told by its name, so that JAX is not imported for it
    return isinstance(e, MemoryError) or (type(e).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(e))


def _asked(e: BaseException) -> str:
    """What was asked for in vain, as numpy, pyarrow and JAX say it in a line."""
    words = " ".join(str(e).split())
    return f" ({words[:200]})" if words else ""


def size(n: float) -> str:
    """Bytes in words.

    >>> size(3.2e9), size(150e6), size(70)
    ('3.2 GB', '150 MB', '0 MB')
    """
    return f"{n / 1e9:.1f} GB" if n >= 999.5e6 else f"{max(n, 0) / 1e6:.0f} MB"


def _address_space() -> Left:
    """RLIMIT_AS less what is mapped."""
    if resource is None:
        return Left(float("inf"))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    mapped = _number("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or mapped is None:
        return Left(float("inf"))
    return Left(limit - mapped * _PAGE, f"of the {size(limit)} that it is limited to are left (ulimit -v)")


def _control_groups() -> Iterator[Left]:
    """The limit of each group of ours and of those above it, less what is in use; files that are cached can go."""
    for line in _lines("/proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        # within a container the path may be that outside of it: its root is always there
        root, *names = (
            ("/sys/fs/cgroup", "memory.max", "memory.current", "file")
            if number == "0"
            else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        )
        group = Path(root + path)
        for place in {group, *group.parents, Path(root)}:
            limit, used = (_number(place / name) for name in names[:2])
            if limit is None or used is None or not place.is_relative_to(root):
                continue
            cached = _named(place / "memory.stat", names[2])
            yield Left(limit - used + cached, f"of the {size(limit)} of its control group are left")


def _machine() -> Left:
    """What the system can give without swapping, and what it can swap."""
    free = _named("/proc/meminfo", "MemAvailable:") + _named("/proc/meminfo", "SwapFree:")
    if free:
        return Left(1024 * free, "are free")
    with suppress(ValueError, OSError, AttributeError):
        return Left(os.sysconf("SC_PHYS_PAGES") * _PAGE, "is all that the machine has")
    return Left(float("inf"))


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except (OSError, ValueError):
        return []


def _number(path: str | Path) -> int | None:
    """The number that a file begins with; None of one that is not there, or says "max"."""
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].isdecimal() else None


def _named(path: str | Path, name: str) -> int:
    """The number after a name; 0 where there is none."""
    rows = (line.split() for line in _lines(path))
    return next((int(row[1]) for row in rows if len(row) > 1 and row[0] == name), 0)
