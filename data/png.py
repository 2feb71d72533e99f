"""PNG files: their chunks, and what must be known of these beside what Pillow makes of them."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngStream

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LENGTH_AND_KIND = struct.Struct(">I4s")
IHDR = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
GREY, RGB = 0, 2  # colour types with a transparent colour; those with a palette have transparencies in its order
CHANNELS = {GREY: 1, RGB: 3, 3: 1, 4: 2, 6: 4}  # by colour type

PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # chunks that always count

# Texts in which programs write how a picture is to be turned, by their keywords.
KEYWORDS = (b"Raw profile type exif", b"exif", b"XML:com.adobe.xmp")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")

# First column, first row, and steps of both, of the passes in which an interlaced picture is stored.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

MARK = (173, 91, 47, 5)  # a colour, of as many channels as there are, that is rare in the corner of a picture
PIECE = 1 << 20  # bytes that are decompressed at a time, to be counted


class Header(NamedTuple):
    """The first chunk of a file, without what is always 0."""

    width: int
    height: int
    bits: int
    colour_type: int
    interlaced: bool


def is_png(contents: bytes) -> bool:
    """Whether a file begins as PNG files do."""
    return contents.startswith(SIGNATURE)


def without_metadata(contents: bytes) -> bytes:
    """Leave out of a file the chunks that do not decide how it looks.

    Pillow refuses a file for colour profiles and texts that are damaged or larger than its limits. What is left is
    bounded by those limits, however much a small chunk would become.
    """
    parts, start = [], 0
    reader = None
    for kind, first, end in _chunks(contents):
        if kind in PIXELS:
            continue
        reader = reader or PngStream(io.BytesIO())
        if not _is_needed(kind, contents[first + 8 : end], reader):
            parts.append(contents[start:first])
            start = end
    return b"".join([*parts, contents[start:]]) if parts else contents


def correct_transparency(image: Image.Image, contents: bytes) -> None:
    """Give the transparent grey value or colour of an opened file in the units that its pixels have.

    A file gives it in as many bits as its samples have. Pillow widens samples of 1, 2 and 4 bits to 8, and keeps the
    upper 8 of the 16 bits of a colour, so that two colours that differ in the lower ones alone are taken for one.
    """
    header = _header(contents)
    if "transparency" not in image.info or header.colour_type not in (GREY, RGB):
        return
    start = next(start for kind, start, _ in _chunks(contents) if kind == b"tRNS")
    values = struct.unpack_from(f">{CHANNELS[header.colour_type]}H", contents, start + 8)
    if header.bits == 16:
        image.info["transparency"] = values[0] if header.colour_type == GREY else tuple(value >> 8 for value in values)
        return
    largest = (1 << header.bits) - 1
    values = tuple((value & largest) * 255 // largest for value in values)
    image.info["transparency"] = values[0] if header.colour_type == GREY else values


def load(image: Image.Image, contents: bytes) -> None:
    """Decode all pixels of an opened file.

    Pillow takes a file for whole whose compressed data are, even if they hold fewer rows than the picture has. So all
    pixels are marked before they are read. Only if the last one has the colour of the mark afterwards, or if the file
    is interlaced, where it is not the last one that is read, the data are decompressed again and counted.

    Raises:
        ValueError: If rows are missing.
    """
    header = _header(contents)
    last, mark = (image.width - 1, image.height - 1), MARK[: len(image.getbands())]
    mark = mark if len(mark) > 1 else mark[0]
    image.im = Image.core.fill(image.mode, image.size, mark)
    image.load()
    if not header.interlaced and image.getpixel(last) != mark:
        return
    expected = sum(_pass_sizes(header))
    found = _count_decompressed(contents, limit=expected)
    if found < expected:
        raise ValueError(f"it is cut off: its pixels are {expected:,} bytes, but it holds {found:,}")


def _chunks(contents: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk of a file. The last one may be cut off."""
    start = len(SIGNATURE)
    while start + LENGTH_AND_KIND.size <= len(contents):
        length, kind = LENGTH_AND_KIND.unpack_from(contents, start)
        end = min(start + 12 + length, len(contents))  # 8 bytes before its body, and 4 of a checksum after it
        yield kind, start, end
        start = end


def _is_needed(kind: bytes, rest: bytes, reader: PngStream) -> bool:
    """Whether pixels, or how they are turned, may depend on a chunk of which `rest` follows. `reader` is Pillow's."""
    if not kind[0] & 32:  # a capital letter: it must not be passed over
        return True
    body, checksum = rest[:-4], rest[-4:]
    if zlib.crc32(kind + body).to_bytes(4) != checksum:
        return False
    return kind == b"eXIf" or (
        kind in TEXTS and body.partition(b"\0")[0] in KEYWORDS and _can_be_read(kind, body, reader)
    )


def _can_be_read(kind: bytes, text: bytes, reader: PngStream) -> bool:
    """Whether Pillow can read a text, and all before it, within its limits."""
    reader.fp = io.BytesIO(text)
    try:
        getattr(reader, f"chunk_{kind.decode()}")(0, len(text))
    except (ValueError, SyntaxError, LookupError, OSError):
        return False
    return True


def _header(contents: bytes) -> Header:
    start = next(start for kind, start, _ in _chunks(contents) if kind == b"IHDR")
    width, height, bits, colour_type, _, _, interlaced = IHDR.unpack_from(contents, start + 8)
    return Header(width, height, bits, colour_type, bool(interlaced))


def _pass_sizes(header: Header) -> Iterator[int]:
    """Bytes of each pass over a picture: rows of whole bytes, each after one byte that names its filter."""
    bits = header.bits * CHANNELS[header.colour_type]
    for column, row, across, down in PASSES if header.interlaced else ((0, 0, 1, 1),):
        width, height = -(-(header.width - column) // across), -(-(header.height - row) // down)
        if width > 0 and height > 0:
            yield height * (1 + -(-width * bits // 8))


def _count_decompressed(contents: bytes, *, limit: int) -> int:
    """Bytes of pixels in a file, at most `limit`, of which few are in memory at a time."""
    inflater, found = zlib.decompressobj(), 0
    with suppress(zlib.error):  # which Pillow would have met, unless it comes after the pixels
        for kind, start, end in _chunks(contents):
            compressed = contents[start + 8 : end - 4] if kind == b"IDAT" else b""
            while compressed and found < limit:
                found += len(inflater.decompress(compressed, PIECE))
                compressed = inflater.unconsumed_tail
    return min(found, limit)
