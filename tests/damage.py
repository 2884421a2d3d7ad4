"""What can happen to a file's bytes."""

import numpy as np


def damages(content):
    """What happens to a file's bytes: (what, the bytes)."""
    for position in range(len(content)):
        yield f"byte {position}", _flipped(content, position, (1, 0x20, 0xFF)[position % 3])
    for length in range(0, len(content), 64):
        yield f"cut to {length}", content[:length]
    yield "zeros", bytes(len(content))
    yield "random", np.random.default_rng(0).bytes(len(content))
    yield "longer", content + b"\n"


def _flipped(content, position, mask):
    return content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]
