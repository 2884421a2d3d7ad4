"""Small grey images, as PNG within the page."""

import base64
import struct
import zlib
from collections.abc import Sequence

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(pixels: Sequence[int], height: int, width: int) -> bytes:
    r"""An image of 8 bits a pixel, 0 black and 255 white, given line by line (PNG, ISO/IEC 15948).

    >>> png([0, 255], 1, 2)[:4]
    b'\x89PNG'
    """
    # each line begins with its filter, 0: none
    lines = b"".join(b"\0" + bytes(pixels[y * width : (y + 1) * width]) for y in range(height))
    # 8 bits, grey, and the only methods that there are
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def data_url(pixels: Sequence[int], height: int, width: int) -> str:
    """The image as an address."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels, height, width)).decode()}"
