"""The bytes of a delimited file, read from their beginning as often as they are wanted, a piece at a time."""

import codecs
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from bilevax.core.errors import DataError
from bilevax.tables.csv_opening import LINE_END, above

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SAMPLED = 50
"""Lines by which the delimiter is recognised."""

_PIECE = 1 << 20
# The longer first: the mark of UTF-32 begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Content(NamedTuple):
    """The bytes of a file, those at its beginning replaced.

    Attributes:
        start: opens the file.
        head: stands for the first bytes.
        skipped: how many these are.
    """

    start: Callable[[], BinaryIO]
    head: bytes = b""
    skipped: int = 0

    def open(self) -> BinaryIO:
        """The bytes, to be read once; closed when nobody holds them any more."""
        file = self.start()
        file.seek(self.skipped)
        return io.BufferedReader(_Joined(self.head, file), _PIECE)

    def pieces(self) -> Iterator[bytes]:
        """The bytes in pieces; none of them ends between CR and LF."""
        left = b""
        with self.open() as file:
            while piece := file.read(_PIECE):
                piece = left + piece
                left = b"\r" if piece.endswith(b"\r") else b""
                yield piece[: len(piece) - len(left)]
        yield left

    def with_head(self) -> "Content":
        """The same; the head holds so many lines that it says how the file is delimited."""
        size, head = _PIECE, b""
        with self.open() as file:
            # Twice as many each time; what is a comment is no sample.
            while more := file.read(size - len(head)):
                head += more
                if sum(1 for _ in LINE_END.finditer(head, above(head))) >= SAMPLED:
                    break
                size *= 2
        return Content(self.start, head, self.skipped + len(head))

    def after(self, lines: int) -> BinaryIO:
        """What follows so many lines."""
        place = 0
        for piece in self.pieces():
            for found in LINE_END.finditer(piece):
                lines -= 1
                if not lines:
                    file = self.open()
                    _pass_over(file, place + found.end())
                    return file
            place += len(piece)
        return io.BytesIO()

    def line_at(self, position: int) -> int:
        """The line on which a byte is."""
        line = 1
        for piece in self.pieces():
            line += sum(1 for _ in LINE_END.finditer(piece, 0, max(0, position)))
            if position < len(piece):
                return line
            position -= len(piece)
        return line


class _Joined(io.RawIOBase):
    """Bytes, then the rest of a file."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = memoryview(head), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room = memoryview(buffer)
        taken = self._head[: len(room)] or self._file.read(len(room))
        self._head = self._head[len(taken) :]
        room[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._file.close()
        super().close()


def _pass_over(file: BinaryIO, count: int) -> None:
    while count > 0:
        count -= len(file.read(min(count, _PIECE)))


class Encoding(NamedTuple):
    """The bytes of a file, looked at once: the first that is not UTF-8 and its line, and whether there is a quote."""

    other: tuple[int, int] | None
    quoted: bool


def checked_content(name: str, start: Callable[[], BinaryIO]) -> tuple[Content, Encoding]:
    """The content without a byte order mark, known to hold no NUL, with a head; and its encoding.

    Raises:
        DataError: the file is empty, or no text.
    """
    with start() as file:
        first = file.read(4096)
    for mark, encoding in _BOMS:
        if first.startswith(mark):
            raise DataError(f"{name}: the file is {encoding}; save it as UTF-8")
    content = Content(start, skipped=len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0)
    place, blank, quoted, other = 0, True, False, None
    decoder = codecs.getincrementaldecoder("utf-8")()
    for piece in content.pieces():
        nul = piece.find(b"\0")
        if nul >= 0:
            # Every second byte of English in UTF-16 is NUL.
            if first.count(b"\0") > len(first) // 4:
                raise DataError(f"{name}: the file looks like UTF-16 or like no text at all; save it as UTF-8")
            line = content.line_at(place + nul)
            raise DataError(f"{name}:{line}: a NUL byte; the file is damaged, or is no text")
        blank, quoted = blank and not piece.strip(), quoted or b'"' in piece
        if other is None:
            other = _other(decoder, piece, place)
        place += len(piece)
    if blank:
        raise DataError(f"{name}: the file is empty")
    if other is None:
        other = _other(decoder, b"", place, final=True)
    found = None if other is None else (content.line_at(other[0]), other[1])
    return content.with_head(), Encoding(found, quoted)


def _other(
    decoder: codecs.IncrementalDecoder, piece: bytes, place: int, *, final: bool = False
) -> tuple[int, int] | None:
    """The place of the first byte that is not UTF-8, and the byte."""
    begun = decoder.getstate()[0]
    try:
        decoder.decode(piece, final)
    except UnicodeDecodeError as e:
        return place - len(begun) + e.start, (begun + piece)[e.start]
    return None
