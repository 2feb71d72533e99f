"""Read PNG files where Pillow alone does not: damaged metadata, transparent colours and missing rows."""

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
GREY, RGB = 0, 2  # colour types with a single transparent colour; a palette has a transparency for each entry
CHANNELS = {GREY: 1, RGB: 3, 3: 1, 4: 2, 6: 4}  # samples of a pixel, by colour type

PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # chunks that always affect the pixels

# Keywords of the texts in which programs write the orientation, and the chunks that hold texts.
KEYWORDS = (b"Raw profile type exif", b"exif", b"XML:com.adobe.xmp")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")

# First column, first row, and steps of both, of each pass in which an interlaced image is stored (Adam7).
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

MARK = (173, 91, 47, 5)  # a colour that is rare in the corner of an image; as many channels of it as an image has
PIECE_SIZE = 1 << 20  # bytes that are decompressed at a time when they are counted


class Header(NamedTuple):
    """The first chunk of a file, without its fields that are always 0."""

    width: int
    height: int
    bits: int
    colour_type: int
    interlaced: bool


def is_png(contents: bytes) -> bool:
    """Return whether a file has the signature of a PNG file."""
    return contents.startswith(SIGNATURE)


def without_metadata(contents: bytes) -> bytes:
    """Return a file without the chunks that do not affect its pixels.

    Pillow refuses a file whose colour profile or texts are damaged or exceed its limits. The chunks that stay are
    within those limits, so that a small chunk cannot be decompressed to a huge one.
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
    """Convert the transparent grey value or colour of an opened file to the scale of its decoded pixels.

    A file stores it in as many bits as its samples have. Pillow widens samples of 1, 2 and 4 bits to 8, but not this
    value. Of colours with 16 bits it keeps the upper 8, so that two colours with the same upper bits are one.
    """
    header = _header(contents)
    if "transparency" not in image.info or header.colour_type not in (GREY, RGB):
        return
    start = next(start for kind, start, _ in _chunks(contents) if kind == b"tRNS")
    stored = struct.unpack_from(f">{CHANNELS[header.colour_type]}H", contents, start + 8)
    largest = (1 << header.bits) - 1
    if header.bits < 16:
        values = tuple((value & largest) * 255 // largest for value in stored)
    else:  # grey images of 16 bits keep them
        values = stored if header.colour_type == GREY else tuple(value >> 8 for value in stored)
    image.info["transparency"] = values[0] if header.colour_type == GREY else values


def load(image: Image.Image, contents: bytes) -> None:
    """Decode all pixels of an opened file.

    Pillow accepts a file whose compressed data are complete, even if they contain fewer rows than the image has. So all
    pixels get the colour `MARK` before they are read. If the last one still has it afterwards, or if the file is
    interlaced, so that the last pixel is not the last one read, the data are decompressed again and counted.

    Raises:
        ValueError: If rows are missing.
    """
    header = _header(contents)
    last, bands = (image.width - 1, image.height - 1), len(image.getbands())
    mark = MARK[:bands] if bands > 1 else MARK[0]
    image.im = Image.core.fill(image.mode, image.size, mark)
    image.load()
    if not header.interlaced and image.getpixel(last) != mark:
        return
    expected = sum(_pass_sizes(header))
    found = _count_decompressed(contents, limit=expected)
    if found < expected:
        raise ValueError(f"it is cut off: its pixels are {expected:,} bytes, but it holds {found:,}")


def _chunks(contents: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk of a file. The last one may be cut off."""
    start = len(SIGNATURE)
    while start + LENGTH_AND_KIND.size <= len(contents):
        length, kind = LENGTH_AND_KIND.unpack_from(contents, start)
        end = min(start + 12 + length, len(contents))  # 8 bytes before its body, and 4 of a checksum after it
        yield kind, start, end
        start = end


def _is_needed(kind: bytes, rest: bytes, reader: PngStream) -> bool:
    """Return whether a chunk may affect the pixels or their orientation. `rest` is its body and checksum."""
    if not kind[0] & 32:  # a capital letter: a decoder must not ignore it
        return True
    body, checksum = rest[:-4], rest[-4:]
    if zlib.crc32(kind + body).to_bytes(4) != checksum:
        return False
    return kind == b"eXIf" or (
        kind in TEXTS and body.partition(b"\0")[0] in KEYWORDS and _can_be_read(kind, body, reader)
    )


def _can_be_read(kind: bytes, text: bytes, reader: PngStream) -> bool:
    """Return whether Pillow can read a text, together with the texts before it, within its limits."""
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
    """Yield the bytes of each pass over an image: in each row one byte for its filter, then samples in whole bytes."""
    bits = header.bits * CHANNELS[header.colour_type]
    for column, row, across, down in PASSES if header.interlaced else ((0, 0, 1, 1),):
        width, height = -(-(header.width - column) // across), -(-(header.height - row) // down)
        if width > 0 and height > 0:
            yield height * (1 + -(-width * bits // 8))


def _count_decompressed(contents: bytes, *, limit: int) -> int:
    """Decompress the pixels of a file piece by piece, and return their number of bytes, at most `limit`."""
    inflater, found = zlib.decompressobj(), 0
    with suppress(zlib.error):  # damage among the pixels has made Pillow fail already
        for kind, start, end in _chunks(contents):
            compressed = contents[start + 8 : end - 4] if kind == b"IDAT" else b""
            while compressed and found < limit:
                found += len(inflater.decompress(compressed, PIECE_SIZE))
                compressed = inflater.unconsumed_tail
    return min(found, limit)
