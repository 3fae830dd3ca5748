# SPDX-License-Identifier: Apache-2.0
"""PNG files whose pixels are class numbers: grayscale values, or indices of a palette.

A usual decoder returns the colors of a palette, and stretches grayscale of fewer than 8 bits to 0..255. Neither are the
stored numbers. `stored_numbers` rewrites a file to 8-bit or smaller grayscale with the same pixel data, which any
decoder returns unchanged, except for a known factor.
Source: Portable Network Graphics specification, W3C 2003.
"""

import struct
import zlib
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _PALETTE = 0, 3
_COLOR_TYPES = {2: "RGB", 4: "grayscale with transparency", 6: "RGBA"}
_DEPTHS = (1, 2, 4, 8)
_HEADER = struct.Struct(">IIBBBBB")


@dataclass(frozen=True, kw_only=True)
class PngNumbers:
    """A PNG file that a decoder can read.

    Args:
        content: A grayscale PNG file.
        height: Its height in pixels.
        width: Its width in pixels.
        factor: What the decoder multiplies the stored numbers by to stretch them to 0..255.
    """

    content: bytes
    height: int
    width: int
    factor: int


def why_no_numbers(content: bytes) -> str | None:
    """Return why a file has no class numbers, as the rest of a sentence about it; None if it has.

    Args:
        content: The file, or its first 33 bytes.
    """
    if not content.startswith(SIGNATURE):
        return "is not a PNG file. JPEG changes the values of pixels, so save masks as PNG"
    if content[12:16] != b"IHDR" or len(content) < 33:
        return "is a damaged PNG file"
    _, _, depth, color, *_ = _HEADER.unpack(content[16:29])
    if color in _COLOR_TYPES:
        return (
            f"has {_COLOR_TYPES[color]} pixels, and colors are not class numbers. Save a class number for each pixel, "
            "as 8-bit grayscale or with a palette"
        )
    if color not in (_GRAY, _PALETTE) or depth not in (*_DEPTHS, 16):
        return "is a damaged PNG file"
    return "has 16 bits per pixel, expected at most 8. Number the classes from 0 to 254" if depth == 16 else None


def stored_numbers(content: bytes) -> PngNumbers:
    """Return a grayscale PNG file with the numbers that a grayscale or palette PNG file stores.

    Args:
        content: A file for which `why_no_numbers` returns None.

    Raises:
        ValueError: A chunk is cut off, or the checksum of the header is wrong.
    """
    width, height, depth, _, *methods = _HEADER.unpack(content[16:29])
    if zlib.crc32(content[12:29]) != struct.unpack(">I", content[29:33])[0]:
        raise ValueError("the checksum of the header is wrong")
    header = _HEADER.pack(width, height, depth, _GRAY, *methods)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    place = 33
    while place < len(content):
        if place + 12 > len(content):
            raise ValueError("a chunk is cut off")
        (length,) = struct.unpack(">I", content[place : place + 4])
        end = place + 12 + length
        if end > len(content):
            raise ValueError("a chunk is cut off")
        name = content[place + 4 : place + 8]
        if name in (b"IDAT", b"IEND"):
            parts.append(content[place:end])
        place = len(content) if name == b"IEND" else end
    return PngNumbers(content=b"".join(parts), height=height, width=width, factor=255 // (2**depth - 1))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
