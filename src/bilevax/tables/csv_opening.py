"""What stands above the header of a delimited file: the line by which Excel is told the delimiter, and comments.

Such a line becomes a blank one, which is no row for any reader: lines keep their numbers.
"""

import re
from collections.abc import Callable

from bilevax.core.errors import DataError

LINE_END = re.compile(rb"\r\n|\n|\r")
_SEP = re.compile(rb'"?sep=([^\s"]|\t)"?[ ]*(?=[\r\n])', re.IGNORECASE)
_COMMENTS = re.compile(rb"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\n|\r))*")


def without_sep(data: bytes) -> tuple[bytes, str | None]:
    """The bytes without the line ``sep=;``, and the delimiter that it names."""
    found = _SEP.match(data)
    if found is None or not found[1].isascii():
        return data, None
    return data[found.end() :], found[1].decode()


def above(data: bytes) -> int:
    """Where the lines end that stand first and are blank or begin with ``#``."""
    found = _COMMENTS.match(data)
    return found.end() if found else 0


def comments_end(data: bytes) -> int:
    """As :func:`above`, but 0 where no line begins with ``#``, or nothing follows."""
    end = above(data)
    return end if b"#" in data[:end] and data[end:].strip() else 0


def blanked(data: bytes, end: int) -> bytes:
    """The bytes, their lines up to the end blank."""
    return b"".join(found[0] for found in LINE_END.finditer(data, 0, end)) + data[end:]


def without_comments(name: str, data: bytes, width: Callable[[bytes], int]) -> tuple[bytes, int]:
    """The bytes without the comments above the header, and how many these are.

    The last of them may be the header (``#CHROM``): if it has as many fields, by ``width``, as the line below.

    Raises:
        DataError: it may be either.
    """
    end = comments_end(data)
    if not end:
        return data, 0
    starts = [0, *(found.end() for found in LINE_END.finditer(data, 0, end))]
    marked = [(row, start) for row, start in enumerate(starts) if data[start:end].lstrip(b" \t").startswith(b"#")]
    row, start = next(pair for pair in reversed(marked) if data[pair[1] : end].strip())
    last, below = _line(data, start), _line(data, end)
    if last.startswith(b"##") or width(last) != width(below):
        return blanked(data, end), len(marked)
    # A name follows the # of a header, and somewhere below it there are numbers.
    if last[1:2] == b" " or not re.search(rb"\d", below):
        raise DataError(
            f"{name}:{row + 1}: the line begins with '#' and has as many fields as the next: is it a comment or the "
            "header? Delete the line, or the '#'"
        )
    return blanked(data, start), len(marked) - 1


def _line(data: bytes, start: int) -> bytes:
    found = LINE_END.search(data, start)
    return data[start : found.start() if found else None]
